// Command foldkeys prints, as JSON, the smallest of the characters that encoding/json takes for one, by
// character; those that are taken only for themselves are left out. encoding/json folds the keys of objects by
// unicode.SimpleFold.
package main

import (
	"encoding/json"
	"os"
	"unicode"
)

func main() {
	folded := map[string]string{}
	for char := rune(0); char <= unicode.MaxRune; char++ {
		smallest := char
		for next := unicode.SimpleFold(char); next != char; next = unicode.SimpleFold(next) {
			smallest = min(smallest, next)
		}
		if unicode.SimpleFold(char) != char {
			folded[string(char)] = string(smallest)
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(folded); err != nil {
		panic(err)
	}
}
