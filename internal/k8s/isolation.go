package k8s

import (
	"context"
	"errors"
)

// metadata are the services by which clouds tell a machine who it is, and give it credentials.
var metadata = []target{
	{"the metadata service", "169.254.169.254:80"},
	{"the metadata service (IPv6)", "[fd00:ec2::254]:80"},
	{"the metadata service (EKS)", "169.254.170.23:80"},
	{"the metadata service (Alibaba)", "100.100.100.200:80"},
	{"the wire server (Azure)", "168.63.129.16:80"},
}

// isolationSuite tries every way out of a container and into it. Beside the pod with a container's policies there is one
// without any, which tells what is blocked from what is not there, and stands for another tenant.
func isolationSuite(ctx context.Context, inside *probe) (list []Check) {
	fail := func(err error) []Check { return append(list, Check{Name: "isolation", Problem: err}) }
	outside, err := inside.open(ctx, false)
	if err != nil {
		return fail(err)
	}
	defer func() {
		if err := outside.close(); err != nil {
			list = append(list, Check{Name: "clearing away", Problem: err})
		}
	}()
	targets, err := inside.targets(ctx, 20)
	if err != nil {
		return fail(err)
	}
	targets = append(append(targets, metadata...), target{"another container", outside.address()})
	seen, err := inside.reached(ctx, targets)
	if err != nil {
		return fail(err)
	}
	there, err := outside.tries(ctx, targets)
	if err != nil {
		return fail(err)
	}
	for _, t := range targets {
		cure := enforceThem + ", or list the address in the setting blocked"
		if t.address == outside.address() {
			cure = enforceThem
		}
		list = append(list, judge("isolation: to "+t.name+" ("+t.address+")", cure, seen[t.address], there[t.address]))
	}
	in := []target{{address: inside.address()}}
	seen, err = outside.reached(ctx, in)
	if err != nil {
		return fail(err)
	}
	there, err = inside.tries(ctx, in) // itself, which is not policies' business
	if err != nil {
		return fail(err)
	}
	list = append(list, judge("isolation: from another container", enforceThem, seen[inside.address()], there[inside.address()]))
	ok, err := inside.resolves(ctx)
	if err == nil && !ok {
		err = errors.New("containers do not reach what resolves names; name it with the setting resolver")
	}
	return append(list, Check{Name: "isolation: names are resolved", Problem: err})
}

// judge says what it means that a pod reached what it must not, while one that may did so or not.
func judge(name, cure string, reached, there bool) Check {
	c := Check{Name: name}
	switch {
	case reached:
		c.Problem = errors.New("a container gets through; " + cure)
	case there:
		c.Detail = "blocked"
	default:
		c.Detail = "nothing answers there, so that nothing can be said"
	}
	return c
}
