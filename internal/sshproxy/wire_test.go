package sshproxy

import (
	"bufio"
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"
)

// countedConn counts the reads that brought something.
type countedConn struct {
	net.Conn
	reads int
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.reads++
	}
	return n, err
}

// TestWireReadsAhead moves bytes through a wire as x/crypto reads packets: all arrive, in order, in few reads while there are
// many, and no memory is held once the client has slowed down.
func TestWireReadsAhead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	const packet, packets = 32<<10 + 36, 256
	source := rand.NewChaCha8([32]byte{1})
	data := make([]byte, packet*packets)
	_, _ = source.Read(data) // never fails
	sent := make(chan error, 1)
	go func() {
		_, err := client.Write(data)
		sent <- err
	}()
	counted := &countedConn{Conn: server}
	w := &wire{Conn: counted, ahead: []byte("look")}
	r := bufio.NewReaderSize(w, cryptoBuffer)
	ahead := make([]byte, 4)
	if _, err := io.ReadFull(r, ahead); err != nil || string(ahead) != "look" {
		t.Fatalf("%q, %v", ahead, err)
	}
	got := make([]byte, len(data))
	for i := range packets {
		p := got[i*packet : (i+1)*packet]
		if _, err := io.ReadFull(r, p[:4]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, p[4:]); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Error("what arrived is not what was sent")
	}
	if counted.reads >= 2*packets { // what x/crypto's own buffer comes to
		t.Errorf("%d reads for %d packets", counted.reads, packets)
	}
	for range 3 { // keystrokes
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if b, err := r.ReadByte(); err != nil || b != 'x' {
			t.Fatalf("%q, %v", b, err)
		}
	}
	if w.large != nil || w.ahead != nil {
		t.Error("an idle connection holds memory for reads")
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("%v, want EOF", err)
	}
}
