// Command gateway (berth-gateway) is Berth's SSH gateway, beside a berth-api on the same data directory.
package main

import "berth/internal/app"

func main() {
	app.Main("berth-gateway", "Run Berth's SSH gateway beside a berth-api on the same data directory", app.Gateway)
}
