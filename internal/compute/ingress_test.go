package compute_test

import (
	"testing"

	"berth/internal/compute"
)

func TestIngressRequest(t *testing.T) {
	n := func(i int) *int { return &i }
	for _, port := range []int{80, 443, 8000, 8080, 8999} {
		got, err := compute.IngressRequest{Port: n(port)}.Validate()
		if want := (compute.IngressRule{Port: port, TargetPort: port}); err != nil || got != want {
			t.Errorf("port %d: %+v, %v", port, got, err)
		}
		for _, target := range []int{1, 22, 65535} {
			got, err := compute.IngressRequest{Port: n(port), TargetPort: n(target)}.Validate()
			if want := (compute.IngressRule{Port: port, TargetPort: target}); err != nil || got != want {
				t.Errorf("port %d to %d: %+v, %v", port, target, got, err)
			}
		}
	}
	for field, list := range map[string][]compute.IngressRequest{
		"port": {
			{},
			{TargetPort: n(80)},
			{Port: n(0)},
			{Port: n(-80)},
			{Port: n(1)},
			{Port: n(22)},
			{Port: n(79)},
			{Port: n(81)},
			{Port: n(442)},
			{Port: n(444)},
			{Port: n(7999)},
			{Port: n(9000)},
			{Port: n(65535)},
			{Port: n(65536)},
			{Port: n(1<<16 + 80)},
			{Port: n(1 << 40)},
			{Port: n(22), TargetPort: n(0)},
		},
		"target_port": {
			{Port: n(80), TargetPort: n(0)},
			{Port: n(80), TargetPort: n(-1)},
			{Port: n(80), TargetPort: n(65536)},
			{Port: n(80), TargetPort: n(1<<32 + 80)},
		},
	} {
		for _, r := range list {
			got, err := r.Validate()
			if e := compute.AsError(err); e == nil || e.Code != compute.CodeInvalid || e.Field != field {
				t.Errorf("%+v is %+v, %v; want an error about %s", r, got, err, field)
			}
		}
	}
}
