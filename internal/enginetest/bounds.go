package enginetest

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"berth/internal/compute"
)

func small(c *compute.Spec) { c.StorageGB, c.MemoryMB = 1, 128 }

func testStorage(t *testing.T, s *Subject) {
	full, other := newBox(t, s, small), newBox(t, s, small)
	full.apply(true)
	other.apply(true)
	fill := func(file string) {
		out, _, err := full.try("head -c 2G /dev/zero > " + file + " 2>/dev/null; echo $?")
		if err == nil && strings.TrimSpace(out) == "0" {
			t.Errorf("2 GiB fit into %s of a container with 1 GB", file)
		}
		if err != nil { // memory is bounded too, and may have ended the script
			t.Logf("filling %s: %v", file, err)
		}
	}
	fill("/dev/shm/fill")
	full.sh("rm -f /dev/shm/fill")
	fill("/tmp/fill")
	fill("/root/fill")
	// Then small files, until nothing goes in any more.
	full.sh("i=0; while mkdir /root/d$i 2>/dev/null; do i=$((i+1)); done; rm -f /tmp/fill; head -c 2G /dev/zero > /root/fill; true")
	other.sh("head -c 10M /dev/zero > /root/f; sync; rm /root/f")
	if u, err := s.Engine.Usage(full.ctx(), full.spec.Ref); err != nil || u.StorageGB > 1.01 || u.StorageGB < 0.9 {
		t.Errorf("usage of the full one is %+v, %v", u, err)
	}
	full.apply(false) // even so it can be stopped and started
	full.apply(true)
	full.sh("rm -rf /root/fill /root/d*; echo again > /root/f; echo again > /f")
	other.eq("echo up", "up")
}

// A container gets what it is given more of without a restart, and what it wrote stays.
func testResize(t *testing.T, s *Subject) {
	b := newBox(t, s, small)
	wantGB := func(when string, want int) {
		t.Helper()
		if !s.Quota {
			return
		}
		n, err := strconv.Atoi(strings.TrimSpace(b.sh(`df -k /root | awk 'NR == 2 { print $2 }'`)))
		if err != nil {
			t.Fatal(err)
		}
		if got := (n + 1<<19) >> 20; got != want {
			t.Errorf("%d GB %s, want %d", got, when, want)
		}
	}
	b.apply(true)
	b.sh("echo kept >/root/file; echo 'in memory' >/tmp/run")
	wantGB("at first", 1)

	b.spec.MemoryMB = 256
	if s.Quota {
		b.spec.StorageGB = 3
	}
	b.apply(true)
	b.eq("cat /root/file /tmp/run", "kept\nin memory")
	want := 1
	if s.GrowsRunning {
		want = 3
	}
	wantGB("after it grew to 3 while it ran", want)
	b.sh("head -c 150000000 /dev/zero | tail -c 150000000 | wc -c") // more than it had
	b.apply(true)                                                   // again, which changes nothing

	b.apply(false)
	if s.Quota {
		b.spec.StorageGB = 4
	}
	b.apply(false)
	b.apply(true)
	b.eq("cat /root/file", "kept")
	wantGB("after it grew to 4 while it did not run", 4)
}

func testMemory(t *testing.T, s *Subject) {
	b, other := newBox(t, s, small), newBox(t, s, small)
	b.apply(true)
	other.apply(true)
	out, _, err := b.try("(head -c 500M /dev/zero | tail -c 500M | wc -c) 2>/dev/null; echo over")
	if err != nil || strings.Contains(out, "524288000") {
		t.Errorf("500 MiB fit into 128: %q, %v", out, err)
	}
	b.eq("echo up", "up") // the agent outlives it
	other.eq("echo up", "up")
}

func testProcesses(t *testing.T, s *Subject) {
	b, other := newBox(t, s, func(c *compute.Spec) { c.MemoryMB = 1024 }), newBox(t, s) // so that their number ends it, not their memory
	b.apply(true)
	other.apply(true)
	// Every process of the bomb waits on a fifo that nobody writes, so that their number only grows until it may not.
	out, _, err := b.try(`mkfifo /tmp/f; i=0; while [ $i -lt 20000 ]; do (read x < /tmp/f) >/dev/null 2>&1 & i=$((i+1)); done; echo $i`)
	if err != nil || strings.TrimSpace(out) == "20000" {
		t.Errorf("20000 processes fit into one container: %q, %v", out, err)
	}
	other.sh("for i in 1 2 3 4 5; do (true) & done; wait")
	b.apply(false)
	b.apply(true)
	b.eq("echo up", "up")
}

func testInside(t *testing.T, s *Subject) {
	b := newBox(t, s)
	b.apply(true)
	short, _, _ := strings.Cut(b.spec.Hostname, ".")
	b.eq("hostname", short)
	b.eq("cat /etc/hostname", short)
	b.eq("hostname -f", b.spec.Hostname)
	b.eq("grep -c ^nameserver /etc/resolv.conf", "1")
	if s.HostsMounted {
		b.eq("echo x > /etc/hosts && cat /etc/hosts", "x")
	} else {
		b.eq("echo x > /etc/new && mv /etc/new /etc/hosts && cat /etc/hosts", "x") // editors and package scripts rename over it
	}
	b.eq("ulimit -c", "0")
	b.eq("grep NoNewPrivs /proc/1/status | tr -d '\\t'", "NoNewPrivs:0")
	b.eq("grep Seccomp: /proc/1/status | tr -d '\\t'", "Seccomp:2")
	for _, script := range []string{
		"mknod /tmp/n b 7 0", "mount -t tmpfs none /mnt", "mount -o remount,rw /sys", "unshare -U true",
		"echo 1 > /proc/sys/kernel/panic", "echo c > /proc/sysrq-trigger", "touch /.berth/agent", "rm /.berth/agent",
		"touch /.berth/x", "chroot /proc/1/root/../.. ls /run/containerd", "cat /proc/kcore | head -c 1 | grep .",
	} {
		if out, status, err := b.try("(" + script + ") 2>/dev/null"); err != nil || status == 0 {
			t.Errorf("%s: status %d, %v, printed %q; want a refusal", script, status, err, out)
		}
	}
	b.eq("ping -c 1 -w 5 127.0.0.1 > /dev/null && echo works", "works")
	if !s.Quota {
		return
	}
	b.eq(fmt.Sprintf("df -k / | tail -1 | { read a size c; [ $size -gt %d ] && [ $size -le %d ]; echo $?; }",
		b.spec.StorageGB*900_000, b.spec.StorageGB<<20), "0")
}
