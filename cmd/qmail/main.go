// Command qmail is all of qmail's programs in one. It finds out which one is meant by the name under which it
// was called (qmail-smtpd, sendmail, ...) or by its first argument (qmail smtpd), and does nothing else.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"qmail/internal/role/authd"
	"qmail/internal/role/bouncesaying"
	"qmail/internal/role/check"
	"qmail/internal/role/checkpw"
	"qmail/internal/role/condredirect"
	"qmail/internal/role/dotforward"
	"qmail/internal/role/elq"
	"qmail/internal/role/except"
	"qmail/internal/role/explain"
	"qmail/internal/role/fastforward"
	"qmail/internal/role/forward"
	"qmail/internal/role/getpw"
	"qmail/internal/role/home"
	"qmail/internal/role/importer"
	"qmail/internal/role/inject"
	"qmail/internal/role/keyd"
	"qmail/internal/role/ledger"
	"qmail/internal/role/local"
	"qmail/internal/role/lspawn"
	"qmail/internal/role/maildir2mbox"
	"qmail/internal/role/maildirmake"
	"qmail/internal/role/maildirserial"
	"qmail/internal/role/maildirsmtp"
	"qmail/internal/role/maildirwatch"
	"qmail/internal/role/mailsubj"
	"qmail/internal/role/newaliases"
	"qmail/internal/role/newmrh"
	"qmail/internal/role/newu"
	"qmail/internal/role/passwdtool"
	"qmail/internal/role/pop3d"
	"qmail/internal/role/popup"
	"qmail/internal/role/predate"
	"qmail/internal/role/preline"
	"qmail/internal/role/pw2u"
	"qmail/internal/role/qbiff"
	"qmail/internal/role/qmqpc"
	"qmail/internal/role/qmqpd"
	"qmail/internal/role/qmtpd"
	"qmail/internal/role/qread"
	"qmail/internal/role/qreceipt"
	"qmail/internal/role/qstat"
	"qmail/internal/role/queue"
	"qmail/internal/role/queuetool"
	"qmail/internal/role/remote"
	"qmail/internal/role/resolve"
	"qmail/internal/role/rspawn"
	"qmail/internal/role/send"
	"qmail/internal/role/sendmail"
	"qmail/internal/role/serialqmtp"
	"qmail/internal/role/serialsmtp"
	"qmail/internal/role/setforward"
	"qmail/internal/role/setlock"
	"qmail/internal/role/showctl"
	"qmail/internal/role/smtpd"
	"qmail/internal/role/splogger"
	"qmail/internal/role/tcpenv"
	"qmail/internal/role/tcpto"
	"qmail/internal/super"
	"qmail/internal/super/rights"
	"qmail/internal/system/env"
)

const version = "0.1.0-dev"

const (
	exitUsage = 100
	exitLater = 111
)

// program is one of ours.
type program struct {
	link string // the name under which it is installed
	main func(context.Context, *env.Env, []string) int
	// signals says that the context ends with SIGTERM and SIGINT. Others see to their signals themselves, or
	// simply die.
	signals bool
	about   string
}

// programs are the roles of this version.
var programs = []program{
	{"qmail-init", home.Main, false, "make a home"},
	{"qmail-start", super.Main, false, "run everything"},
	{"qmail-restart", super.Restart, false, "run everything anew, as it is on the disk now, without closing the sockets"},
	{"qmail-smtpd", smtpd.Main, true, "receive mail by SMTP"},
	{"qmail-qmtpd", qmtpd.Main, true, "receive mail by QMTP"},
	{"qmail-qmqpd", qmqpd.Main, true, "receive mail by QMQP from trusted machines"},
	{"qmail-authd", authd.Main, false, "know who has which password"},
	{"qmail-checkpw", checkpw.Main, false, "ask a program whether a password is right"},
	{"qmail-passwd", passwdtool.Main, false, "manage who may log in"},
	{"qmail-send", send.Main, false, "keep the queue and decide who is tried when"},
	{"qmail-lspawn", lspawn.Main, true, "start deliveries to users"},
	{"qmail-keyd", keyd.Main, false, "hold private keys and sign with them"},
	{"qmail-local", local.Main, false, "deliver to a user"},
	{"qmail-popup", popup.Main, false, "ask who reads mail by POP3"},
	{"qmail-pop3d", pop3d.Main, false, "give out mail by POP3"},
	{"qmail-newu", newu.Main, false, "make users/cdb"},
	{"qmail-pw2u", pw2u.Main, false, "make users/assign of passwd"},
	{"qmail-getpw", getpw.Main, false, "say whose account a local part is"},
	{"qmail-rspawn", rspawn.Main, true, "send mail to other machines"},
	{"qmail-remote", remote.Main, false, "send one message to another machine"},
	{"qmail-queue", queue.Main, false, "put a message into the queue"},
	{"qmail-queuetool", queuetool.Main, false, "list the queue, and give orders about messages; also qmail queue COMMAND"},
	{"qmail-resolve", resolve.Main, true, "ask the DNS for the others"},
	{"qmail-import", importer.Main, false, "take over the queue of an older qmail"},
	{"qmail-explain", explain.Main, false, "say what would happen to mail for an address, or what became of a message"},
	{"qmail-ledger", ledger.Main, false, "balance the account of all mail, and say what became of some"},
	{"qmail-qread", qread.Main, false, "list the queue as ever"},
	{"qmail-qstat", qstat.Main, false, "say how much there is in the queue"},
	{"qmail-tcpto", tcpto.Main, false, "list addresses that time out"},
	{"qmail-tcpok", tcpto.Forget, false, "try addresses again that timed out"},
	{"qmail-qmqpc", qmqpc.Main, false, "put a message into another machine's queue"},
	{"qmail-inject", inject.Main, false, "complete a message and queue it"},
	{"sendmail", sendmail.Main, false, "send mail as other systems' sendmail does"},
	{"mailq", sendmail.Mailq, false, "list the queue"},
	{"datemail", sendmail.Datemail, false, "sendmail with a Date field in the local time"},
	{"predate", predate.Main, false, "run a program with a Date field before its input"},
	{"mailsubj", mailsubj.Main, false, "send mail with a subject"},
	{"qmail-newmrh", newmrh.Main, false, "make control/morercpthosts.cdb"},
	{"qmail-check", check.Main, false, "say what a stranger sees on each door"},
	{"qmail-showctl", showctl.Main, false, "show and check the control files, for people"},
	{"qmail-control", showctl.Control, false, "show and check the control files, for scripts"},
	{"forward", forward.Main, false, "send mail on from a .qmail file"},
	{"condredirect", condredirect.Main, false, "send mail on if a program says so"},
	{"except", except.Main, false, "turn a program's answer around"},
	{"bouncesaying", bouncesaying.Main, false, "bounce mail with words of one's own"},
	{"preline", preline.Main, false, "run a program with the lines before the message"},
	{"maildirmake", maildirmake.Main, false, "make a Maildir"},
	{"maildir2mbox", maildir2mbox.Main, false, "move mail from a Maildir to an mbox file"},
	{"maildirwatch", maildirwatch.Main, true, "show what is new in a Maildir"},
	{"qbiff", qbiff.Main, false, "tell the user of mail"},
	{"qreceipt", qreceipt.Main, false, "tell the sender that mail has arrived"},
	{"elq", elq.Elq, false, "read mail with elm"},
	{"pinq", elq.Pinq, false, "read mail with pine"},
	{"qail", elq.Qail, false, "read mail with Mail"},
	{"splogger", splogger.Main, false, "give lines to syslog"},
	{"tcp-env", tcpenv.Main, false, "find out who is at the other end, and run a program"},
	{"setlock", setlock.Main, false, "run a program that holds a lock"},
	{"dot-forward", dotforward.Main, false, "do what a .forward file says"},
	{"fastforward", fastforward.Main, false, "forward mail by a table"},
	{"newaliases", newaliases.Main, false, "make the table of /etc/aliases"},
	{"newinclude", newaliases.Newinclude, false, "make an included list"},
	{"setforward", setforward.Main, false, "make a table for fastforward"},
	{"setmaillist", setforward.Setmaillist, false, "make a list for fastforward"},
	{"printforward", setforward.Printforward, false, "show a table of fastforward"},
	{"printmaillist", setforward.Printmaillist, false, "show a list of fastforward"},
	{"maildirserial", maildirserial.Main, false, "send what is in a Maildir"},
	{"serialsmtp", serialsmtp.Main, false, "send messages over one SMTP connection"},
	{"serialqmtp", serialqmtp.Main, false, "send messages over one QMTP connection"},
	{"maildirsmtp", maildirsmtp.Main, false, "send a Maildir by SMTP"},
	{"maildirqmtp", maildirsmtp.Qmtp, false, "send a Maildir by QMTP"},
}

// absent are names of other versions of qmail that scripts may call, and what is there instead. They exit 111, so
// that whoever calls one tries again later instead of losing mail.
var absent = []struct{ link, instead string }{
	{"qmail-clean", "qmail-send removes by itself what is done with"},
	{"qmail-todo", "qmail-send takes new messages by itself, and never waits for them"},
	{"qmail-upq", "this queue has no older form to be brought up from"},
	{"qsmhook", "preline does what it did"},
}

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	p, known := find(name)
	if !known { // our own name, or one that is none of ours
		if len(args) == 0 {
			usage(os.Stderr)
			os.Exit(exitUsage)
		}
		name, args = args[0], args[1:]
		if name == "queue" && len(args) > 0 { // qmail-queue has no arguments
			name = "queuetool"
		}
		if p, known = find(name); !known {
			os.Exit(other(name))
		}
	}
	if p.main == nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", p.link, p.about)
		os.Exit(exitLater)
	}
	os.Exit(run(p, args))
}

func run(p program, args []string) int {
	e, err := env.Process()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.link, err)
		return exitLater
	}
	hostile(p.link, e)
	if walls {
		if err := rights.Enter(p.link, args, e); err != nil {
			e.Log(p.link).Error("cannot start: the walls cannot be built", "err", err)
			return exitLater
		}
	}
	ctx := context.Background()
	if p.signals {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
		defer stop()
	}
	defer profile(p.link)()
	return p.main(ctx, e, args)
}

// find looks a name up, with or without its "qmail-".
func find(name string) (program, bool) {
	for _, p := range programs {
		if name == p.link || "qmail-"+name == p.link {
			return p, true
		}
	}
	for _, a := range absent {
		if name == a.link || "qmail-"+name == a.link {
			return program{link: a.link, about: a.instead}, true
		}
	}
	return program{}, false
}

// other is what our own name can be followed by besides programs.
func other(name string) int {
	switch name {
	case "version", "-V", "--version":
		fmt.Printf("qmail %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	case "programs": // for those who make links
		for _, p := range programs {
			fmt.Println(p.link)
		}
		for _, a := range absent {
			fmt.Println(a.link)
		}
	case "help", "-h", "--help":
		usage(os.Stdout)
	default:
		fmt.Fprintf(os.Stderr, "qmail: there is no program %q; qmail help lists them\n", name)
		return exitUsage
	}
	return 0
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "usage: qmail PROGRAM [arguments], where PROGRAM is one of")
	for _, p := range programs {
		fmt.Fprintf(w, "  %-8s %s\n", strings.TrimPrefix(p.link, "qmail-"), p.about)
	}
	fmt.Fprintln(w, "  version  say which version this is")
	fmt.Fprintln(w, "  programs list the names under which programs are installed")
}
