package config_test

import (
	"strings"
	"testing"

	"berth/internal/config"
)

func TestDatabase(t *testing.T) {
	for address, want := range map[string]string{
		"":                                      "",
		"postgres://berth@db.example.com/berth": "",
		"postgresql://berth@/berth?host=/run/postgresql":               "",
		"postgres://berth@db/berth?passfile=/etc/berth/pgpass":         "",
		"postgres://a@h1,h2/berth?target_session_attrs=read-write":     "",
		"mysql://berth@db/berth":                                       "such as postgres://",
		"/var/lib/berth.db":                                            "such as postgres://",
		"host=db dbname=berth":                                         "such as postgres://",
		"postgres://berth:hunter2@db/berth":                            "passfile=FILE",
		"postgres://berth@db/berth?password=hunter2":                   "passfile=FILE",
		"postgres://berth@db/berth?sslmode=prefer&sslpassword=hunter2": "passfile=FILE",
		"postgres://berth:hunter2@db:port/%zz":                         "such as postgres://",
	} {
		c := config.Default()
		c.Database = address
		err := c.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the password is in %q", err)
		}
	}
}
