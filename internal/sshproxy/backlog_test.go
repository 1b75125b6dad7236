package sshproxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// dataMessage is SSH_MSG_CHANNEL_DATA (RFC 4254, section 5.2).
func dataMessage(channel uint32, data []byte) []byte {
	return appendString(binary.BigEndian.AppendUint32([]byte{94}, channel), data)
}

// TestTinyPacketsAreBounded sends packets of one byte to sessions that read nothing: the gateway stops reading the
// connection long before x/crypto's windows are full, and ends it when that lasts.
func TestTinyPacketsAreBounded(t *testing.T) {
	const limit = 16 << 20
	h := newHarbour(t, Options{Limits: Limits{Backlog: limit, BacklogTimeout: 3 * time.Second}})
	c := loggedInRaw(t, h.gatewayUnderTest, "aaaaaaaa", h.key)
	if err := c.nc.SetDeadline(time.Now().Add(5 * time.Minute)); err != nil { // half a million packets, a system call each
		t.Fatal(err)
	}
	const sessions = 4
	for i := range uint32(sessions) {
		if err := c.write(openMessage("session", i, 1<<20)); err != nil {
			t.Fatal(err)
		}
		request := binary.BigEndian.AppendUint32([]byte{98}, i)
		request = append(appendString(request, []byte("exec")), 0)
		if err := c.write(appendString(request, []byte("exec sleep 1000"))); err != nil {
			t.Fatal(err)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, c.nc) }()
	sent := 0
	packet := dataMessage(0, []byte("x"))
	var err error
	for err == nil && sent < sessions*(2<<20)*36 {
		binary.BigEndian.PutUint32(packet[1:], uint32(sent/36)%sessions)
		if err = c.write(packet); err == nil {
			sent += 36
		}
	}
	// Sockets hold some megabytes on the way.
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || sent > limit+(32<<20) {
		t.Errorf("the gateway took %d MB: %v", sent>>20, err)
	}
}

// TestBacklogEstimate drives far more through a connection than may wait, in ways that the estimate sees badly, beside
// a session that reads nothing.
func TestBacklogEstimate(t *testing.T) {
	const limit = 16 << 20
	b := newBacklog(limit, time.Minute)
	stalled := b.counted(nil)
	for range 10 * limit / (32 << 10) { // a transfer
		b.came(32<<10 + 36)
		b.gone(32<<10 + packetCost)
	}
	for range 10_000_000 { // keystrokes, keepalives, and windows for output
		b.came(36)
		b.gone(answerCost)
	}
	if full, _ := b.full(); full {
		t.Error("what was read counts as waiting")
	}
	b.came(limit + 1)
	if full, idle := b.full(); !full || idle {
		t.Errorf("full %v, idle %v", full, idle)
	}
	stalled.finish()
	within(t, 5*time.Second, "everybody has read", func() {
		if err := b.wait(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestManyStalledUploads are more sessions than a person has, each full to the brim, beside one that works.
func TestManyStalledUploads(t *testing.T) {
	h := newHarbour(t, Options{})
	c := h.login(t)
	for range 24 {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		in, err := s.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start("exec sleep 1000"); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(in, endless{}) }()
	}
	for range 20 {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		s.Stdin = bytes.NewReader(make([]byte, 1<<20))
		within(t, 20*time.Second, "a session beside stalled ones", func() {
			if out, err := s.Output("cat"); err != nil || len(out) != 1<<20 {
				t.Errorf("%d bytes, %v", len(out), err)
			}
		})
	}
}
