package compute

import "time"

// IngressRule exposes a container's port.
type IngressRule struct {
	ID         int64
	Port       int // on the outside; one rule a container has it
	TargetPort int // inside the container
	CreatedAt  time.Time
}

// HTTPSPort is the external port whose rule has the gateway route HTTPS to the container.
const HTTPSPort = 443

// IngressRequest is what a user asks for when exposing a port. Nil fields were not given.
type IngressRequest struct {
	Port       *int
	TargetPort *int // nil: as Port
}

// Validate returns the rule that the request asks for, without id and time. The error is CodeInvalid and names the field.
func (r IngressRequest) Validate() (IngressRule, error) {
	const ports = "80, 443 and 8000 to 8999"
	if r.Port == nil {
		return IngressRule{}, Invalid("port", "Say which port to expose; the external ports are %s.", ports)
	}
	rule := IngressRule{Port: *r.Port, TargetPort: *r.Port}
	if rule.Port != 80 && rule.Port != HTTPSPort && (rule.Port < 8000 || rule.Port > 8999) {
		return IngressRule{}, Invalid("port", "The external ports are %s; choose one of them, and any target_port.", ports)
	}
	if r.TargetPort != nil {
		rule.TargetPort = *r.TargetPort
	}
	if rule.TargetPort < 1 || rule.TargetPort > 65535 {
		return IngressRule{}, Invalid("target_port", "A port inside a container is from 1 to 65535.")
	}
	return rule, nil
}
