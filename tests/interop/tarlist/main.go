// Command tarlist reads archives from standard input, each after its length in 8 bytes, and writes what
// Go's archive/tar finds in each as a line of JSON: engines unpack layers with that package.
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
)

type entry struct {
	Name []byte `json:"name"`
	Type byte   `json:"type"`
	Size int    `json:"size"`
	Link []byte `json:"link"`
	Mode int64  `json:"mode"`
	Data string `json:"data"`
}

type listing struct {
	Entries []entry `json:"entries"`
	Error   string  `json:"error"`
}

func list(data []byte) (found listing) {
	found.Entries = []entry{}
	reader := tar.NewReader(bytes.NewReader(data))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return found
		}
		if err != nil {
			found.Error = err.Error()
			return found
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			continue // as containerd does
		}
		held, err := io.ReadAll(reader)
		if err != nil {
			found.Error = err.Error()
			return found
		}
		sum := sha256.Sum256(held)
		found.Entries = append(found.Entries, entry{
			Name: []byte(header.Name), Type: header.Typeflag, Size: len(held),
			Link: []byte(header.Linkname), Mode: header.Mode, Data: hex.EncodeToString(sum[:]),
		})
	}
}

func main() {
	input, output := bufio.NewReader(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var size uint64
		if err := binary.Read(input, binary.BigEndian, &size); err == io.EOF {
			return
		} else if err != nil {
			panic(err)
		}
		data := make([]byte, size)
		if _, err := io.ReadFull(input, data); err != nil {
			panic(err)
		}
		if err := output.Encode(list(data)); err != nil {
			panic(err)
		}
	}
}
