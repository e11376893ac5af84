// Web serves one page; "web -check" serves it to itself once and prints it.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
)

func main() {
	check := flag.Bool("check", false, "request the page once, print it and exit")
	flag.Parse()
	http.HandleFunc("/", page)
	if !*check {
		log.Fatal(http.ListenAndServe(":8080", nil))
	}
	if err := requestOnce(); err != nil {
		log.Fatal(err)
	}
}

func page(response http.ResponseWriter, _ *http.Request) {
	motd, err := os.ReadFile("/etc/motd")
	if err != nil {
		http.Error(response, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(response, "[%s] on %s", runtime.GOARCH, motd)
}

// requestOnce needs no network but the loopback interface, which is all that an emulated run has.
func requestOnce() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go http.Serve(listener, nil)
	response, err := http.Get("http://" + listener.Addr().String())
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}
