# Berth: `make` alone lists what there is to make.
SHELL := /bin/bash
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

ifeq ($(shell id -u),0)
root :=
else
comma := ,
# What is set for berth goes through sudo; what it makes for the person who called is theirs (SUDO_UID).
root := sudo --preserve-env=PATH,CI,$(subst $() ,$(comma),$(filter BERTH_%,$(.VARIABLES)))
endif

version := $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo unknown)
sources := $(shell find cmd internal api web -type f ! -name '*_test.go' ! -path '*/node_modules/*' 2>/dev/null)
arch := $(shell go env GOARCH 2>/dev/null)
up := bin/berth bin/berth-agent-linux-$(arch)
rest := bin/berth-api bin/berth-gateway $(patsubst %,bin/berth-agent-linux-%,$(filter-out $(arch),amd64 arm64))
# Builds the image beside what follows. mkimage comes first, since two builds at a time compile what they share twice.
with-image = $(MAKE) --silent -j3 packages modules build/mkimage && $(MAKE) --silent -j2 image

# Where images go, and for which architectures: the development cluster has this machine's alone.
platforms := $(or $(PLATFORMS),$(if $(REGISTRY),amd64 arm64,$(arch)))
bin-of = $(if $(filter $1,$(arch)),bin,build/linux-$1)
images := build/images-$(subst $(eval ) ,-,$(platforms))
ship = build/ship $1 --data $(or $(BERTH_DATA),data) $(if $(OVERLAY),--overlay '$(OVERLAY)')

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: up
up: ask-go ask-root ## Install what is missing, build, and run Berth in the foreground (ARGS="--http-addr …", BERTH_DATA=dir)
	@$(with-image) $(up)
	@$(root) bin/berth up $(ARGS)

.PHONY: down
down: ask-root ## Stop Berth and its containers (ARGS=--delete removes all they have)
	@[ -x bin/berth ] || $(MAKE) --silent ask-go $(up)
	@$(root) bin/berth down $(ARGS)

.PHONY: test
test: ask-go ask-root $(if $(ARGS),,cluster) ## Install what is missing and run the tests with the race detector: the packages', end to end, and on a Kubernetes
	@deploy/install-packages test
	@$(with-image) build build/oldest-agent $(if $(ARGS),,$(images)/index.json build/helm)
	@deploy/test $(ARGS)

.PHONY: check
check: ## Format, vet, staticcheck, imports, version pins, scripts, clean tree
	@deploy/install-packages check
	@deploy/check

.PHONY: bench
bench: ask-go ask-root ## Measure Berth beside OpenSSH's own server, and print a table with ratios
	@deploy/install-packages bench
	@$(with-image) build build/bench-image.tar
	@CGO_ENABLED=0 go build -trimpath -o build/bench ./bench
	@$(root) build/bench $(ARGS)

.PHONY: bench-k8s
bench-k8s: ask-go ask-root cluster ## The same on a Kubernetes, beside kubectl exec and a server in the same pod
	@deploy/install-packages bench
	@$(with-image) build build/bench-image.tar
	@CGO_ENABLED=0 go build -trimpath -o build/bench ./bench
	@$(root) build/bench --kubernetes $(ARGS)

.PHONY: test-k8s
test-k8s: ask-go ask-root cluster ## Those alone that need a Kubernetes, on ones that they start (ARGS as for test)
	@deploy/install-packages test
	@$(with-image) build $(images)/index.json build/helm
	@deploy/test $(or $(ARGS),kubernetes)

.PHONY: cluster-up
cluster-up: ask-go ask-root cluster ## Start a Kubernetes of one node on this machine (ARGS="--dir dir --json")
	@$(root) build/devcluster/devcluster up $(ARGS)

.PHONY: cluster-down
cluster-down: ask-go ask-root build/devcluster/devcluster ## Stop it (ARGS=--delete removes what it stored)
	@$(root) build/devcluster/devcluster down $(ARGS)

.PHONY: deploy
deploy: ask-go build/ship ## Bring Berth to a Kubernetes: the development cluster, or with REGISTRY=host/path ZONE=zone another (KUBECONFIG, OVERLAY=dir)
	@deploy/install-packages image
	@$(with-image) $(images)/index.json
	@$(call ship,up) --images $(images) --version '$(version)' $(if $(REGISTRY),--registry '$(REGISTRY)') $(if $(ZONE),--zone '$(ZONE)') $(ARGS)

.PHONY: undeploy
undeploy: ask-go build/ship ## Remove Berth from there; its database and containers stay (ARGS=--delete takes them too, --yes does not ask)
	@$(call ship,down) $(ARGS)

.PHONY: images
images: ask-go build/ship ## Build the images of api, gateway and agent into build/ (PLATFORMS="amd64 arm64")
	@$(with-image) $(images)/index.json

.PHONY: push
push: ask-go build/ship ## Push them to REGISTRY=host/path, and no more
	@$(with-image) $(images)/index.json
	@build/ship push --images $(images) --version '$(version)' --registry '$(REGISTRY)'

.PHONY: build
build: $(up) $(rest) ## Build the programs into bin/

.PHONY: image
image: build/base-image.tar ## Build the containers' base image into build/ (IMAGE=-force takes in Debian's updates)

.PHONY: fmt
fmt: ## Format the source
	@git ls-files --cached --others --exclude-standard '*.go' | xargs go tool gofumpt -w

.PHONY: clean
clean: ## Remove what was built, and the cluster; data stays (make down ARGS=--delete removes that)
	@[ ! -e build/devcluster/state ] || $(root) build/devcluster/devcluster down --delete
	@[ ! -e build/devcluster/state ] || $(root) rm -r build/devcluster/state
	@rm -rf bin build

.PHONY: ask-go
ask-go:
	@command -v go >/dev/null || { echo "Go is missing; go.mod says which: https://go.dev/dl/" >&2; exit 1; }

# Asks for sudo's password once, before anything runs beside it.
.PHONY: ask-root
ask-root:
ifneq ($(root),)
	@sudo -v
endif

.PHONY: packages
packages:
	@deploy/install-packages up image

# Fetches what is compiled after mkimage, meanwhile. If it cannot, the build says so.
.PHONY: modules
modules:
	@go list -deps ./cmd/berth ./cmd/agent >/dev/null 2>&1 || true

# Changes only when the version does.
build/version: always
	@mkdir -p build
	@[ "$$(cat $@ 2>/dev/null)" = '$(version)' ] || echo '$(version)' >$@

.PHONY: always
always:

inputs = go.mod go.sum deploy/build build/version $(sources)

$(up) &: $(inputs)
	@deploy/build '$(version)' berth agent
	@touch $(up)

# After the first two, whose packages they share.
bin/berth-api bin/berth-gateway &: $(inputs) | $(up)
	@deploy/build '$(version)' api gateway
	@touch bin/berth-api bin/berth-gateway

bin/berth-agent-linux-%: $(inputs) | $(up)
	@GOARCH=$* deploy/build '$(version)' agent
	@touch $@

build/oldest-agent: deploy/oldest-agent deploy/oldest-agent.tar.gz | $(up)
	@deploy/oldest-agent $@

# For images, of an architecture that is not this machine's.
build/linux-%/berth: $(inputs) | $(up)
	@GOARCH=$* BIN=build/linux-$* deploy/build '$(version)' berth agent api gateway
	@touch $@

build/ship: $(inputs) $(wildcard deploy/ship/*.go deploy/images/pack/*.go) | $(up)
	@CGO_ENABLED=0 go build -trimpath -o $@ ./deploy/ship
	@touch $@

$(images)/index.json: build/ship build/base-image.tar $(foreach p,$(platforms),$(call bin-of,$p)/berth) $(if $(filter $(arch),$(platforms)),$(up) bin/berth-api bin/berth-gateway)
	@build/ship images --to $(images) --version '$(version)' --base build/base-image.tar \
		$(foreach p,$(platforms),--program $p=$(call bin-of,$p))
	@touch $@

.PHONY: cluster
cluster: build/devcluster/kube build/devcluster/devcluster build/devcluster/pause
	@deploy/install-packages cluster

# Compiles most of Kubernetes: minutes, once.
build/devcluster/kube: deploy/build $(wildcard deploy/devcluster/kube/*)
	@deploy/build '$(version)' kube
	@touch $@ && ln -sf kube build/devcluster/kubectl

build/devcluster/devcluster: go.mod $(wildcard deploy/devcluster/*.go deploy/devcluster/files/*)
	@CGO_ENABLED=0 go build -trimpath -o $@ ./deploy/devcluster

build/devcluster/pause: go.mod deploy/devcluster/pause/main.go
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $@ ./deploy/devcluster/pause

# The chart's test installs it with Helm's own program.
build/helm: $(wildcard deploy/helm/render/go.*)
	@CGO_ENABLED=0 go build -C deploy/helm/render -trimpath -o ../../../$@ helm.sh/helm/v3/cmd/helm

build/mkimage: go.mod $(wildcard deploy/images/mkimage/*.go)
	@CGO_ENABLED=0 go build -trimpath -o $@ ./deploy/images/mkimage

# mkimage itself knows whether there is anything to do.
build/base-image.tar: always packages build/mkimage
	@build/mkimage -o $@ -name berth.local/base $(IMAGE) deploy/images/base

build/bench-image.tar: always packages build/mkimage
	@build/mkimage -o $@ -name berth.local/bench $(IMAGE) deploy/images/base deploy/images/bench
