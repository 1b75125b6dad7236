package config

import (
	"net"
	"time"
)

// checkOperations refuses an admin address that others can reach, unless plain HTTP is permitted there, and stops without end.
func (c Config) checkOperations(bad func(setting, format string, args ...any)) {
	if c.AdminAddr != "" {
		if err := checkAddr(c.AdminAddr, "127.0.0.1:7081"); err != nil {
			bad("admin-addr", "%v", err)
		} else if host, _, err := net.SplitHostPort(c.AdminAddr); err == nil && !c.AllowHTTP && !loopback(host) {
			bad("admin-addr", "%q is not loopback, and whoever reaches it reads metrics and profiles without a token; "+
				"choose 127.0.0.1, or set allow-plain-http", c.AdminAddr)
		}
	}
	if c.DrainDelay < 0 || c.DrainDelay > 5*time.Minute {
		bad("drain-delay", "choose from 0s to 5m")
	}
	if c.DrainTimeout < time.Second || c.DrainTimeout > 5*time.Minute {
		bad("drain-timeout", "choose from 1s to 5m")
	}
}
