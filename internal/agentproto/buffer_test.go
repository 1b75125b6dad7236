package agentproto

import "testing"

// Those who come first and read fast leave room for those who come late to do so, too.
func TestWindowsShare(t *testing.T) {
	b := NewBudget(64 << 20)
	var windows []int64
	for range 15 {
		w := int64(initialWindow)
		if !b.take(w, 0) {
			t.Fatal("a first window is refused")
		}
		for w < maxWindow && b.take(0, w) {
			w *= 2
		}
		windows = append(windows, w)
	}
	if windows[0] != maxWindow || windows[9] < 512<<10 || windows[14] < 2*initialWindow {
		t.Errorf("windows are %d", windows)
	}
}
