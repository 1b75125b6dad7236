package link

import (
	"bytes"
	"errors"
	"io"
	"os"
	"reflect"
	"testing"
)

func readAllFile(tb testing.TB, path string) []byte {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// apply feeds a stream of frames to a replica.
func apply(tb testing.TB, r *Replica, data []byte) {
	tb.Helper()
	if err := feedAll(newFeed(r), data); err != nil {
		tb.Fatal(err)
	}
}

func feedAll(f *feed, data []byte) error {
	defer f.abandon()
	for in := newFrameReader(bytes.NewReader(data), maxFrame); ; {
		fr, err := in.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := f.frame(fr); err != nil {
			return err
		}
	}
}

// TestLoss loses parts of a stream. It is seen, and what stood before stands.
func TestLoss(t *testing.T) {
	frames := func(data []byte) (list [][]byte) {
		for in := newFrameReader(bytes.NewReader(data), maxFrame); ; {
			fr, err := in.next()
			if err != nil {
				return list
			}
			list = append(list, bytes.Clone(fr.raw))
		}
	}
	for name, spoil := range map[string]func(s *stream) []byte{
		"a change":                              func(s *stream) []byte { s.change(alice(1)); return s.change(alice(1, 2)) },
		"a change, and then nothing but a ping": func(s *stream) []byte { s.change(alice(1)); return s.ping() },
		"an object": func(s *stream) []byte {
			f := frames(s.change(alice(1)))
			return bytes.Join([][]byte{f[0], f[2]}, nil)
		},
		"an end": func(s *stream) []byte {
			f := frames(s.change(alice(1)))
			return append(bytes.Join(f[:2], nil), s.ping()...)
		},
		"a begin": func(s *stream) []byte { return bytes.Join(frames(s.change(alice(1)))[1:], nil) },
		"an end, and the next change comes": func(s *stream) []byte {
			return append(bytes.Join(frames(s.change(alice(1)))[:2], nil), s.change(alice(2))...)
		},
		"a byte": func(s *stream) []byte { b := s.change(alice(1)); b[len(b)/2]++; return b },
		"the way to another epoch": func(s *stream) []byte {
			from := s.at
			s.at.Epoch++
			s.must(s.w.begin(begin{From: from, To: s.at}))
			s.must(s.w.end())
			return s.take()
		},
		"the order": func(s *stream) []byte {
			from := s.at
			s.at.Seq--
			s.must(s.w.begin(begin{From: from, To: s.at}))
			s.must(s.w.end())
			return s.take()
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, s := written(t)
			r := reopen(t, path)
			err := feedAll(newFeed(r), spoil(s))
			if err == nil {
				t.Fatal("it is not seen")
			}
			if n := keysOf(r); n != 1 {
				t.Errorf("%d keys open the container", n)
			}
			NewClient(ClientOptions{Replica: r}).judge(err)
			if v := r.position(); v != (wireVersion{}) {
				t.Errorf("after %v it goes on from %v", err, v)
			}
			apply(t, r, s.snapshot(50))
			if n := keysOf(r); n != 2 || r.position() != s.at {
				t.Errorf("after a snapshot %d keys open the container, and it goes on from %v", n, r.position())
			}
		})
	}
}

// TestSnapshotIsAllOrNothing cuts a snapshot off after every frame.
func TestSnapshotIsAllOrNothing(t *testing.T) {
	path, s := written(t)
	r := reopen(t, path)
	whole := s.snapshot(30)
	for end := range whole {
		_ = feedAll(newFeed(r), whole[:end])
		if n := keysOf(r); n != 1 {
			t.Fatalf("after %d of %d bytes %d keys open the container", end, len(whole), n)
		}
	}
	apply(t, r, whole)
	if n := keysOf(r); n != 2 {
		t.Errorf("%d keys open the container", n)
	}
}

func FuzzFrames(f *testing.F) {
	s := newStream(f)
	f.Add(append(s.snapshot(1), s.ping()...))
	f.Add(appendFrame(nil, kindHello, nil))
	f.Add([]byte{0, 0, 0, 1, 1})
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		in := newFrameReader(bytes.NewReader(data), maxGatewayFrame)
		for read := 0; ; {
			fr, err := in.next()
			if err != nil {
				return
			}
			if !bytes.Equal(appendFrame(nil, fr.kind, fr.payload), fr.raw) || !bytes.Equal(fr.raw, data[read:read+len(fr.raw)]) {
				t.Fatalf("a frame of kind %d is read as other bytes", fr.kind)
			}
			if read += len(fr.raw); len(fr.raw) > maxGatewayFrame+8 {
				t.Fatalf("a frame has %d bytes", len(fr.raw))
			}
		}
	})
}

// FuzzFile reads files whose frames may say anything. Whatever is accepted is written again, and read as the same.
func FuzzFile(f *testing.F) {
	s := newStream(f)
	one := s.snapshot(1)
	f.Add(one)
	f.Add(append(append([]byte{}, one...), s.change(alice(1))...))
	f.Add(s.ping())
	c := newCodec()
	f.Fuzz(func(t *testing.T, data []byte) {
		st, base, err := replay(bytes.NewReader(data), c)
		if err != nil {
			return
		}
		if base <= 0 || base > int64(len(data)) || st.version == (wireVersion{}) {
			t.Fatalf("a snapshot of %d bytes at %v", base, st.version)
		}
		var out bytes.Buffer
		r := &Replica{codec: c}
		if err := r.dump(t.Context(), st, st.version, &out); err != nil {
			t.Fatal(err)
		}
		again, _, err := replay(&out, c)
		if err != nil {
			t.Fatal(err)
		}
		if again.version != st.version || len(again.accounts) != len(st.accounts) || len(again.containers) != len(st.containers) {
			t.Fatalf("%d accounts and %d containers become %d and %d", len(st.accounts), len(st.containers),
				len(again.accounts), len(again.containers))
		}
		for id := range st.containers {
			want, werr := st.target(idOf(id))
			got, err := again.target(idOf(id))
			if (err == nil) != (werr == nil) || !reflect.DeepEqual(got, want) {
				t.Fatalf("target %08x is %+v (%v), want %+v (%v)", id, got, err, want, werr)
			}
		}
	})
}

// FuzzAnswers is what a gateway may send.
func FuzzAnswers(f *testing.F) {
	c := newCodec()
	for _, v := range []any{hello{Version: wireVersion{Installation: "here", Epoch: 1, Seq: 2, At: 3}}, answer{Seq: 5}, nil, "x"} {
		b, err := c.enc.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var h hello
		if c.read(data, &h) == nil {
			_ = h.Version.version()
		}
		var a answer
		_ = c.read(data, &a)
	})
}
