// Command tarlist reads archives from standard input, each preceded by its length in 8 bytes, and writes
// the entries that Go's archive/tar reads from each as one line of JSON. Engines unpack layers with that
// package.
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

func list(data []byte) (result listing) {
	result.Entries = []entry{}
	reader := tar.NewReader(bytes.NewReader(data))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return result
		}
		if err != nil {
			result.Error = err.Error()
			return result
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			continue // as containerd does
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			result.Error = err.Error()
			return result
		}
		sum := sha256.Sum256(content)
		result.Entries = append(result.Entries, entry{
			Name: []byte(header.Name), Type: header.Typeflag, Size: len(content),
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
