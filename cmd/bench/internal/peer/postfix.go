package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Postfix is Debian's Postfix, in an instance that shares nothing with one configured in /etc/postfix.
//
// It is configured as its own documents (TUNING_README, QSHAPE_README) advise for much mail: no delay on input, no
// client limits, enough processes, connections to the next host reused, no lookups that its own machine cannot answer,
// no content filter, no chroot. Its syncs stay as they are.
type Postfix struct {
	// Quiet lets nobody listen to its log: a little faster than postlogd writing a file.
	Quiet bool
}

func (Postfix) Name() string { return "postfix" }

const master = "/usr/lib/postfix/sbin/master"

// Missing also refuses where we are not root, as Postfix's master must be.
func (Postfix) Missing() error {
	if _, err := os.Stat(master); err != nil {
		return errors.New("the package postfix is not installed")
	}
	if os.Geteuid() != 0 {
		return errors.New("only root can start Postfix")
	}
	return nil
}

// Install lets apt install the package, without a configuration, so that no server of the system starts. Only root can.
func (Postfix) Install(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("only root can install Debian's package postfix")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	const script = `export DEBIAN_FRONTEND=noninteractive
echo postfix postfix/main_mailer_type select No configuration | debconf-set-selections
install='apt-get install -q -y --no-install-recommends postfix'
$install || { apt-get update -q && $install; }`
	out, err := exec.CommandContext(ctx, "sh", "-c", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("apt-get install postfix: %w\n%s", err, out[max(0, len(out)-2000):])
	}
	return nil
}

// Version is the package's version.
func (Postfix) Version(ctx context.Context) string {
	v, err := quickly(ctx, "/", os.Getuid(), "dpkg-query", "-W", "-f", "Postfix ${Version}", "postfix")
	if err != nil {
		return "Postfix of unknown version"
	}
	return v
}

// Start writes the instance's configuration and runs its master in the foreground.
func (p Postfix) Start(ctx context.Context, s Setup) (*Running, error) {
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	conf, mail := filepath.Join(s.Dir, "conf"), filepath.Join(s.Dir, "mail")
	boxes, err := mailboxes(mail, s)
	count, command, err2 := counter(s.Dir)
	only := filepath.Join(mail, LocalUser, "Maildir")
	if err := errors.Join(err, err2,
		write(conf, map[string]string{"main.cf": p.mainCF(s), "master.cf": masterCF(addr.String(), command, s), "transport": transport(s),
			"boxes": boxTable(s, func(i int) string { return box(i) + "/Maildir/" }), "uids": boxTable(s, func(i int) string { return fmt.Sprint(s.uid(i)) })}),
		maildir(only, Mailowner),
		os.Mkdir(filepath.Join(s.Dir, "queue"), 0o755),
	); err != nil {
		return nil, err
	}
	if s.Boxes == 0 {
		boxes = []string{only}
	}
	if _, err := quickly(ctx, s.Dir, 0, "install", "-d", "-o", "postfix", filepath.Join(s.Dir, "data")); err != nil {
		return nil, err
	}
	if _, err := quickly(ctx, s.Dir, 0, "postfix", "-c", conf, "check"); err != nil {
		return nil, err
	}
	// What "postfix start-fg" ends in: master stays our child, and SIGTERM ends it with its children.
	r, err := nest(ctx, s, 0, []string{"MAIL_CONFIG=" + conf}, []string{master, "-c", conf, "-s"})
	if err != nil {
		return nil, err
	}
	r.Addr, r.Maildirs, r.Count = addr, boxes, count
	r.Program = func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command("/usr/sbin/"+name, append([]string{"-C", conf}, args...)...)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "MAIL_CONFIG=" + conf}
		return cmd
	}
	r.logs = append(r.logs, filepath.Join(s.Dir, "maillog"))
	if err := r.greets(ctx); err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	return r, nil
}

// mainCF differs from Postfix's defaults only where the words say why.
func (p Postfix) mainCF(s Setup) string {
	lines := []string{
		"compatibility_level = 3.6",
		// An instance of its own.
		"queue_directory = " + filepath.Join(s.Dir, "queue"),
		"data_directory = " + filepath.Join(s.Dir, "data"),
		"myhostname = postfix." + LocalDomain,
		"inet_interfaces = 127.0.0.1",
		"inet_protocols = ipv4",
		"mynetworks = 127.0.0.0/8",
		"mydestination =",
		"local_recipient_maps =",
		"alias_maps =",
		"alias_database =",
		// The Maildir. virtual(8) delivers to one faster than local(8), which looks for aliases and .forward first.
		"virtual_mailbox_domains = " + LocalDomain,
		fmt.Sprintf("virtual_mailbox_maps = inline:{ { %s = %s/Maildir/ } }, texthash:%s/conf/boxes", Recipient, LocalUser, s.Dir),
		"virtual_mailbox_base = " + filepath.Join(s.Dir, "mail"),
		"virtual_mailbox_limit = 0",
		p.owners("uid", s),
		p.owners("gid", s),
		// Everything else goes to the sink.
		fmt.Sprintf("relayhost = [%v]:%d", s.Relay.Addr(), s.Relay.Port()),
		"transport_maps = texthash:" + filepath.Join(s.Dir, "conf", "transport"),
		"disable_dns_lookups = yes",
		"smtpd_peername_lookup = no",
		// Nothing slows the sender down.
		"in_flow_delay = 0",
		"smtpd_client_connection_count_limit = 0",
		"smtpd_client_connection_rate_limit = 0",
		"smtpd_client_message_rate_limit = 0",
		"smtpd_client_recipient_rate_limit = 0",
		"smtpd_recipient_limit = 100000",
		"smtpd_relay_restrictions = permit_mynetworks, reject",
		// The mailing list is told by XVERP who may use it.
		"smtpd_authorized_verp_clients = 127.0.0.0/8",
		"default_process_limit = 100",
		"message_size_limit = 0",
		"biff = no",
	}
	if s.Program {
		// By pipe(8), which is faster than a command of local(8), and as many at once as there may be processes.
		lines = append(lines, "virtual_transport = bench", "bench_destination_recipient_limit = 1", "bench_destination_concurrency_limit = 100")
	}
	if s.Hold {
		lines = append(lines, "smtpd_data_restrictions = check_client_access static:hold", "header_checks = static:HOLD")
	}
	if !p.Quiet {
		lines = append(lines, "maillog_file = "+filepath.Join(s.Dir, "maillog"), "maillog_file_prefixes = "+s.Dir)
	}
	return strings.Join(lines, "\n") + "\n"
}

// owners says whose the mailboxes are.
func (Postfix) owners(kind string, s Setup) string {
	if s.Users {
		return fmt.Sprintf("virtual_%s_maps = texthash:%s/conf/uids", kind, s.Dir)
	}
	return fmt.Sprintf("virtual_%s_maps = static:%d", kind, Mailowner)
}

// boxTable is a map from the addresses of all boxes.
func boxTable(s Setup, value func(i int) string) string {
	var b strings.Builder
	for i, address := range BoxAddresses(s.Boxes) {
		fmt.Fprintf(&b, "%s %s\n", address, value(i))
	}
	return b.String()
}

// masterCF is Postfix's own table of services without those that have nothing to do here, none in a chroot.
func masterCF(addr, command string, s Setup) string {
	return fmt.Sprintf(`# service type private unpriv chroot wakeup maxproc command
%s inet n - n - %d smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
bench unix - n n - - pipe flags=q user=nobody argv=/bin/sh -c { %s }
`, addr, max(100, s.Sessions+20), command)
}

func transport(s Setup) string {
	var lines []string
	for domain, to := range s.Routes {
		lines = append(lines, fmt.Sprintf("%s smtp:[%v]:%d\n", domain, to.Addr(), to.Port()))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
