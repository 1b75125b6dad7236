package httpapi

import (
	"testing"

	"berth/internal/compute"
)

// Start and stop answer 200 with the container, whatever it is at that moment and however often they are asked.
func TestStartAndStopRepeated(t *testing.T) {
	a := newAPI(t, nil)
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	path := "/compute/containers/" + string(c.ID)
	post := func(verb string) container {
		t.Helper()
		var v container
		a.do("POST", path+"/"+verb, a.adaToken, "").into(t, 200, &v)
		return v
	}
	ends := map[string]compute.Status{"start": compute.StatusRunning, "stop": compute.StatusStopped}
	for _, words := range [][]string{{"start", "stop"}, {"stop", "start"}, {"stop", "stop", "start", "start", "stop"}, {"start"}} {
		for _, verb := range words {
			if v := post(verb); v.ID != c.ID || v.Name != c.Name {
				t.Errorf("%s answered %+v", verb, v)
			}
		}
		last := words[len(words)-1]
		a.await(a.adaToken, c.ID, ends[last])
		seen, err := a.store.LastEvent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if v := post(last); v.Status != ends[last] {
				t.Errorf("%s of one that is %s answered %s", last, ends[last], v.Status)
			}
		}
		if now, err := a.store.LastEvent(t.Context()); err != nil || now != seen {
			t.Errorf("%s again was told of in %d events, %v", last, now-seen, err)
		}
	}
	if v := post("stop"); v.Status != compute.StatusRunning { // it is stopped when the engine says so
		t.Errorf("stop answered %s", v.Status)
	}
	a.await(a.adaToken, c.ID, compute.StatusStopped)
	if v := post("start"); v.Status != compute.StatusPending || v.MemoryUsedMB != 0 {
		t.Errorf("start answered %+v", v)
	}
	a.await(a.adaToken, c.ID, compute.StatusRunning)
}

// Racing with each other and with a delete, they answer 200 until it is gone and 404 from then on; nothing is left.
func TestStartAndStopRaceWithADelete(t *testing.T) {
	a := newAPI(t, nil)
	c := a.create(a.adaToken, "box", a.addKey(a.adaToken, "laptop"))
	path := "/compute/containers/" + string(c.ID)
	a.await(a.adaToken, c.ID, compute.StatusRunning)
	statuses := a.atOnce(60, func(i int) (method, p, body string) {
		switch {
		case i == 30:
			return "DELETE", path, ""
		case i%3 == 0:
			return "POST", path + "/start", ""
		case i%3 == 1:
			return "POST", path + "/stop", ""
		default:
			return "PUT", path + "/mounts", []string{`{"mount_paths":["/data"]}`, `{"mount_paths":["/srv"]}`}[i%2]
		}
	})
	if statuses[200]+statuses[404] != 60 || statuses[200] == 0 {
		t.Errorf("statuses %v", statuses)
	}
	for _, verb := range []string{"/start", "/stop"} {
		a.do("POST", path+verb, a.adaToken, "").isProblem(t, 404, compute.CodeNotFound, "")
	}
	for {
		left, err := a.store.Reconcilable(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		a.nextCommit()
	}
}
