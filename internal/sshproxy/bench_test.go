package sshproxy

import (
	"fmt"
	"io"
	"os/exec"
	"testing"

	gossh "golang.org/x/crypto/ssh"
)

const benchBytes = 1 << 30

// BenchmarkStockDownload and its siblings move bytes with the stock client and its defaults, gateway and agent in this
// process.
func BenchmarkStockDownload(b *testing.B) {
	h := newHarbour(b, Options{})
	b.SetBytes(benchBytes)
	for b.Loop() {
		cmd := h.stock.command(b.Context(), "aaaaaaaa@"+zone, fmt.Sprintf("head -c %d /dev/zero", benchBytes))
		runBench(b, cmd)
	}
}

func BenchmarkStockUpload(b *testing.B) {
	h := newHarbour(b, Options{})
	b.SetBytes(benchBytes)
	for b.Loop() {
		cmd := h.stock.command(b.Context(), "aaaaaaaa@"+zone, "cat > /dev/null")
		head := exec.CommandContext(b.Context(), "head", "-c", fmt.Sprint(benchBytes), "/dev/zero")
		pipe, err := head.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		cmd.Stdin = pipe
		if err := head.Start(); err != nil {
			b.Fatal(err)
		}
		runBench(b, cmd)
		_ = head.Wait()
	}
}

func BenchmarkStockJumpDownload(b *testing.B) {
	h := newHarbour(b, Options{})
	b.SetBytes(benchBytes)
	for b.Loop() {
		runBench(b, h.stock.command(b.Context(), "root@aaaaaaaa."+zone, fmt.Sprintf("head -c %d /dev/zero", benchBytes)))
	}
}

func BenchmarkStockTrue(b *testing.B) {
	h := newHarbour(b, Options{})
	for b.Loop() {
		runBench(b, h.stock.command(b.Context(), "aaaaaaaa@"+zone, "true"))
	}
}

func BenchmarkStockJumpTrue(b *testing.B) {
	h := newHarbour(b, Options{})
	for b.Loop() {
		runBench(b, h.stock.command(b.Context(), "root@aaaaaaaa."+zone, "true"))
	}
}

func runBench(b *testing.B, cmd *exec.Cmd) {
	b.Helper()
	if err := cmd.Run(); err != nil {
		b.Fatalf("%v: %v", cmd.Args, err)
	}
}

// BenchmarkLogin is a connection with one command, without a client's process.
func BenchmarkLogin(b *testing.B) {
	h := newHarbour(b, Options{})
	for b.Loop() {
		c, err := gossh.Dial("tcp", h.addr, h.clientConfig("aaaaaaaa", h.key))
		if err != nil {
			b.Fatal(err)
		}
		s, err := c.NewSession()
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Run("true"); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// BenchmarkEcho is one byte to a command and back, alone and beside a transfer in the same connection.
func BenchmarkEcho(b *testing.B) {
	for _, beside := range []bool{false, true} {
		b.Run(fmt.Sprintf("transfer=%v", beside), func(b *testing.B) {
			h := newHarbour(b, Options{})
			c := h.login(b)
			if beside {
				busy := h.stock.command(b.Context(), "aaaaaaaa@"+zone, "cat /dev/zero")
				if err := busy.Start(); err != nil {
					b.Fatal(err)
				}
				defer func() {
					_ = busy.Process.Kill()
					_ = busy.Wait()
				}()
			}
			s, err := c.NewSession()
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			in, err := s.StdinPipe()
			if err != nil {
				b.Fatal(err)
			}
			out, err := s.StdoutPipe()
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Start("cat"); err != nil {
				b.Fatal(err)
			}
			buf := []byte{'x'}
			for b.Loop() {
				if _, err := in.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(out, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
