package config_test

import (
	"strings"
	"testing"
	"time"

	"berth/internal/config"
)

func TestOperations(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(*config.Config)
		want string // empty: it is accepted
	}{
		"default":           {func(*config.Config) {}, ""},
		"loopback":          {func(c *config.Config) { c.AdminAddr = "127.0.0.1:7081" }, ""},
		"loopback of IPv6":  {func(c *config.Config) { c.AdminAddr = "[::1]:0" }, ""},
		"everywhere":        {func(c *config.Config) { c.AdminAddr = "0.0.0.0:7081" }, "admin-addr"},
		"no host":           {func(c *config.Config) { c.AdminAddr = ":7081" }, "admin-addr"},
		"permitted":         {func(c *config.Config) { c.AdminAddr, c.AllowHTTP = "10.0.0.1:7081", true }, ""},
		"no port":           {func(c *config.Config) { c.AdminAddr = "127.0.0.1" }, "admin-addr"},
		"a name":            {func(c *config.Config) { c.AdminAddr, c.AllowHTTP = "example.com:1", true }, "admin-addr"},
		"negative delay":    {func(c *config.Config) { c.DrainDelay = -time.Second }, "drain-delay"},
		"long delay":        {func(c *config.Config) { c.DrainDelay = time.Hour }, "drain-delay"},
		"no time":           {func(c *config.Config) { c.DrainTimeout = 0 }, "drain-timeout"},
		"too much time":     {func(c *config.Config) { c.DrainTimeout = time.Hour }, "drain-timeout"},
		"both at the limit": {func(c *config.Config) { c.DrainDelay, c.DrainTimeout = 5*time.Minute, 5*time.Minute }, ""},
	} {
		c := config.Default()
		tc.edit(&c)
		err := c.Validate()
		if (err == nil) != (tc.want == "") || err != nil && !strings.HasPrefix(err.Error(), tc.want+": ") {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
