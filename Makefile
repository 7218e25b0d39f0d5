# What there is to do: build install demo run test vectors adversarial check bench fuzz simulate torture clean.
#
# build, install, demo and run need Go and make. What the others need besides is looked for, and as root installed
# from Debian's packages (scripts/tools).

GO ?= go
PREFIX ?= /var/qmail
DESTDIR ?=
BIN = bin
SOURCES = go.mod go.sum $(shell find cmd internal -name '*.go' -not -name '*_test.go')

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0
FUZZTIME ?= 10s

export CGO_ENABLED = 0

.PHONY: build install demo run test vectors adversarial check bench fuzz simulate torture clean

build: $(BIN)/.links

$(BIN)/qmail: $(SOURCES)
	@mkdir -p $(BIN)
	$(GO) build -trimpath -buildvcs=false -o $@ ./cmd/qmail

# A link for every program, the classic ones included: the binary knows the names.
$(BIN)/.links: $(BIN)/qmail
	@for name in $$($(BIN)/qmail programs); do ln -sf qmail $(BIN)/$$name; done
	@touch $@

install: build
	mkdir -p $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(BIN)/qmail $(DESTDIR)$(PREFIX)/bin/qmail.new
	mv -f $(DESTDIR)$(PREFIX)/bin/qmail.new $(DESTDIR)$(PREFIX)/bin/qmail
	@for name in $$($(BIN)/qmail programs); do ln -sf qmail $(DESTDIR)$(PREFIX)/bin/$$name; done
	@if [ -d man ]; then mkdir -p $(DESTDIR)$(PREFIX)/man && cp -R man/. $(DESTDIR)$(PREFIX)/man/; fi

$(BIN)/demo: $(SOURCES)
	@mkdir -p $(BIN)
	$(GO) build -trimpath -buildvcs=false -o $@ ./cmd/demo

demo: build $(BIN)/demo
	$(BIN)/demo

run: build $(BIN)/demo
	$(BIN)/demo -run

test:
	@scripts/tools useradd:passwd tcpserver:ucspi-tcp
	@scripts/tools strace:strace || echo 'tests with these are skipped'
	@scripts/tools python3:python3 maildrop:maildrop mlmmj-receive:mlmmj || echo 'tests with these are skipped'
	@scripts/tools swaks:swaks+libnet-ssleay-perl mutt:mutt s-nail:s-nail /usr/lib/git-core/git-send-email:git-email+libmailtools-perl || echo 'tests with these are skipped'
	@scripts/tools msmtp:msmtp gsasl:gsasl+libsasl2-modules dovecot:dovecot-core || echo 'tests with these are skipped'
	@scripts/tools smtp-source:postfix systemd-socket-activate:systemd || echo 'tests with these are skipped'
	@scripts/tools openssl:openssl nmap:nmap || echo 'tests with these are skipped'
	@scripts/tools mpop:mpop fetchmail:fetchmail getmail:getmail6 /usr/lib/dovecot/dovecot-lda:dovecot-core /usr/lib/dovecot/imap:dovecot-imapd || echo 'tests with these are skipped'
	$(GO) vet ./...
	$(GO) test -timeout 5m ./...

# What the original did, against what we do. VECTORS is a directory of recordings, or some files of them.
VECTORS ?= internal/vectors/testdata
vectors: build
	$(GO) build -trimpath -buildvcs=false -o $(BIN)/vectors ./cmd/vectors
	$(BIN)/vectors -bin $(BIN) $(VECTORS)

# Hostile input, and what the programs make of it. CASES is a directory of cases, or some files of them; without it, all
# that this tree has. internal/adversarial/leftout.go names what is left out. It takes two minutes: some clients are slow.
CASES ?= $(addprefix internal/,$(addsuffix .jsonl,adversarial/testdata/address adversarial/testdata/header adversarial/testdata/starttls \
	format/cdb/testdata/adversarial proto/smtp/client/testdata/outbound role/local/testdata/adversarial role/popup/testdata/adversarial \
	role/qmqpd/testdata/hostile role/qmtpd/testdata/hostile role/smtpd/testdata/relay role/smtpd/testdata/smtp-misc \
	role/smtpd/testdata/smuggling system/dns/testdata/dns))
adversarial: build
	$(GO) build -trimpath -buildvcs=false -o $(BIN)/adversarial ./cmd/adversarial
	$(BIN)/adversarial -bin $(BIN) $(CASES)

check:
	@scripts/tools cc:gcc mandoc:mandoc tcpserver:ucspi-tcp
	@test -z "$$(gofmt -l cmd internal sim)" || { gofmt -l cmd internal sim; echo 'gofmt: the files above are not formatted'; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	@if [ -d man ]; then mandoc -T lint -W warning man/*.[1-8]; fi
	CGO_ENABLED=1 $(GO) test -race ./...
	$(MAKE) fuzz
	@scripts/vulnerabilities '$(GO)' '$(GOVULNCHECK)'

# Each fuzz target for FUZZTIME.
fuzz:
	@scripts/fuzz '$(GO)' '$(FUZZTIME)'

# The whole server in virtual time, seed after seed from FIRST on, until it is told to stop. Seeds that fail are printed, and
# go test ./sim -seed N -story FILE runs one of them again.
FIRST ?= 1000
simulate:
	$(GO) test -timeout 0 -run TestForever -v ./sim -forever -first $(FIRST)

# The real programs under load while they are killed, stopped and starved. TORTUREFLAGS=-help lists what can be asked for.
torture: build
	$(GO) build -trimpath -buildvcs=false -o $(BIN)/torture ./cmd/torture
	$(BIN)/torture $(TORTUREFLAGS)

# As root it installs Postfix if that is missing, so that no mail server of the system starts; without Postfix it
# measures only ours. BENCHFLAGS=-help lists what can be asked for.
bench: build
	$(GO) build -trimpath -buildvcs=false -o $(BIN)/bench ./cmd/bench
	$(BIN)/bench -install $(BENCHFLAGS)
	@echo 'TLS handshakes with the key in the server, and in qmail-keyd:'
	@$(GO) test -run '^$$' -bench Handshakes -benchtime 3s ./internal/role/keyd

clean:
	rm -rf $(BIN)
