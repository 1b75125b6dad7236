package agent_test

import (
	"fmt"
	"io"
	"testing"
)

// The way of a command's output and input through the agent and the wire. Both ends are this process: its processor
// time is both's.

func BenchmarkDownload(b *testing.B) {
	s := openAs(b, dial(b), "root")
	const size = 256 << 20
	b.SetBytes(size)
	s.exec(fmt.Sprintf("exec head -c %d /dev/zero", b.N*size))
	n, err := io.Copy(io.Discard, s.Channel)
	if n != int64(b.N)*size || err != nil {
		b.Errorf("%d bytes, %v", n, err)
	}
}

func BenchmarkUpload(b *testing.B) {
	s := openAs(b, dial(b), "root")
	const size = 256 << 20
	b.SetBytes(size)
	s.exec("exec cat >/dev/null")
	buf := make([]byte, 32<<10)
	for range b.N * size / len(buf) {
		if _, err := s.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	_ = s.CloseWrite()
	s.end()
}

func BenchmarkTrue(b *testing.B) {
	conn := dial(b)
	a := openAs(b, conn, "root").a
	for b.Loop() {
		ch, err := a.Open(b.Context(), "session", nil)
		if err != nil {
			b.Fatal(err)
		}
		s := session{b, ch, a}
		s.exec("exec true")
		_ = s.CloseWrite()
		s.end()
	}
}
