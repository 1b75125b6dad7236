package k8s

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestParseTolerations(t *testing.T) {
	got := ParseTolerations([]string{"dedicated", "tenants=yes:NoSchedule", "spot:NoExecute", "empty=:NoSchedule"})
	want := []corev1.Toleration{
		{Key: "dedicated", Operator: corev1.TolerationOpExists},
		{Key: "tenants", Operator: corev1.TolerationOpEqual, Value: "yes", Effect: corev1.TaintEffectNoSchedule},
		{Key: "spot", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
		{Key: "empty", Operator: corev1.TolerationOpEqual, Effect: corev1.TaintEffectNoSchedule},
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

func TestParseLabels(t *testing.T) {
	got, want := ParseLabels([]string{"disktype=ssd", "example.com/tenants="}), map[string]string{"disktype": "ssd", "example.com/tenants": ""}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}
