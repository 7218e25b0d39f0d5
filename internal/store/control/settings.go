package control

// Form is how a control file is read.
type Form byte

const (
	OneLine  Form = 'l' // the first line
	Number   Form = 'n' // the digits that the first line begins with
	Lines    Form = 's' // a value per line
	Pairs    Form = 'm' // key:value per line
	Database Form = 'd' // a cdb file
	Source   Form = 'f' // a file from which a program makes a database
	Text     Form = 't' // all of it
	Secret   Form = 'p' // a value per line, to be shown to nobody
)

// Setting is one control file: what it means, who reads it, and what counts without it.
type Setting struct {
	Name     string
	Form     Form
	Me       bool   // without the file, the value of the file me counts
	Default  string // and without that, or for the others, this one; for people
	Programs string // which read it, without their "qmail-"
	Meaning  string
}

// Settings are the control files that programs of ours read, by name.
func Settings() []Setting {
	return []Setting{
		{"authinsecure", Lines, false, "", "smtpd", "networks from which users may log in without TLS"},
		{"authmechanisms", Lines, false, "all that work", "authd", "the mechanisms of AUTH that are offered"},
		{"authsmtp", Number, false, "0", "smtpd", "1: users may log in at the listeners of kind smtp, too"},
		{"badhelo", Lines, false, "", "smtpd", "names in HELO from which no mail is taken: host, .domain or a pattern"},
		{"badhelonorelay", Lines, false, "", "smtpd", "the same, but for relay clients"},
		{"badmailfrom", Lines, false, "", "smtpd", "senders from whom no mail is taken: user@host, @host or a pattern"},
		{"badmailfromnorelay", Lines, false, "", "smtpd", "the same, but for relay clients"},
		{"badrcptto", Lines, false, "", "smtpd", "recipients for whom no mail is taken: user@host, @host or a pattern"},
		{"badrcpttonorelay", Lines, false, "", "smtpd", "the same, but for relay clients"},
		{"bounceformat", OneLine, false, "dsn", "send", "what bounces are: dsn, a multipart/report with qmail's text in front, or qsbmf, that text alone"},
		{"bouncefrom", OneLine, false, "MAILER-DAEMON", "send", "the local part from which bounces come"},
		{"bouncehost", OneLine, true, "bouncehost", "send", "the host from which bounces come"},
		{"bouncemaxbytes", Number, false, "50000", "send", "the largest message that goes back whole in a bounce, in bytes; 0 is any"},
		{"checkpassword", OneLine, false, "", "checkpw authd", "a program with the checkpassword interface that knows who may log in, and its arguments"},
		{"chunking", Number, false, "1", "smtpd", "0: messages come by DATA alone, not in chunks (BDAT)"},
		{"concurrencyincoming", Number, false, "2000", "smtpd qmtpd qmqpd", "sessions at a time, for each protocol"},
		{"concurrencylocal", Number, false, "10", "send", "deliveries on this machine at a time; 0 holds them"},
		{"concurrencypop3", Number, false, "200", "popup", "POP3 sessions at a time"},
		{"concurrencyremote", Number, false, "20", "send", "deliveries to other machines at a time; 0 holds them"},
		{"databytes", Number, false, "0", "smtpd qmtpd", "the largest message that is taken, in bytes; 0 is any"},
		{"defaultdelivery", Text, false, "./Mailbox", "lspawn", "what to do with mail for users without a .qmail file"},
		{"defaultdomain", OneLine, true, "defaultdomain", "inject smtpd", "appended to host names without a dot"},
		{"defaulthost", OneLine, true, "defaulthost", "inject smtpd", "appended to addresses without a host"},
		{"doublebouncehost", OneLine, true, "doublebouncehost", "send", "the host to which bounces of bounces go"},
		{"doublebounceto", OneLine, false, "postmaster", "send", "the user to whom bounces of bounces go"},
		{"dovecotauth", OneLine, false, "", "authd", "the socket of a Dovecot that knows who may log in"},
		{"envnoathost", OneLine, true, "envnoathost", "send qmtpd", "the host of recipients without one"},
		{"helohost", OneLine, true, "", "remote rspawn", "the name by which we greet other machines"},
		{"idhost", OneLine, true, "idhost", "inject smtpd", "the host in message ids"},
		{"ledgerdays", Number, false, "30", "send", "for how many days the account of all mail is kept; 0 is for ever"},
		{"listen", Lines, false, "", "start", "sockets to listen at: SERVICE ADDRESS:PORT"},
		{"lmtproutes", Pairs, false, "", "remote rspawn", "where mail for some domains goes by LMTP: domain:server[:port]"},
		{"localiphost", OneLine, true, "", "smtpd", "the host that our own addresses in brackets stand for"},
		{"locals", Lines, true, "", "send smtpd", "domains whose mail is delivered on this machine"},
		{"maxerrors", Number, false, "20", "smtpd", "refused commands and recipients after which a session ends, counted since the last message"},
		{"maxlogperclient", Number, false, "60", "smtpd qmtpd qmqpd", "lines of log a minute about what one address is refused; more are counted"},
		{"maxmemory", Number, false, "268435456", "smtpd qmtpd qmqpd", "memory for what clients send, all sessions together, in bytes"},
		{"maxperclient", Number, false, "50", "smtpd qmtpd qmqpd", "sessions at a time from one address, for each protocol"},
		{"maxpernetwork", Number, false, "200", "smtpd qmtpd qmqpd", "sessions at a time from one network (/24, or /56 of IPv6), for each protocol"},
		{"maxrecipients", Number, false, "1000", "smtpd qmtpd", "recipients of one message from the network"},
		{"me", OneLine, false, "", "all", "the name of this machine, and the default of many others"},
		{"morercpthosts", Source, false, "", "newmrh", "more of rcpthosts, for qmail-newmrh to make a database of"},
		{"morercpthosts.cdb", Database, false, "", "smtpd qmtpd", "more of rcpthosts"},
		{"percenthack", Lines, false, "", "send smtpd qmtpd", "domains where user%host means user@host"},
		{"plusdomain", OneLine, true, "plusdomain", "inject smtpd", "appended to host names that end in a plus"},
		{"pop3checkpassword", OneLine, false, "", "popup", "the program that checks POP3 passwords"},
		{"pop3perclient", Number, false, "20", "popup", "POP3 sessions at a time from one address"},
		{"proxyclients", Lines, false, "", "smtpd", "networks of proxies, each of whose connections begins with a PROXY header"},
		{"qmaillocal", OneLine, false, "", "lspawn", "a program to be run in the place of qmail-local"},
		{"qmailremote", OneLine, false, "", "rspawn send", "a program to be run in the place of qmail-remote"},
		{"qmqpclients", Lines, false, "", "qmqpd", "networks whose machines may use our queue by QMQP; without the file, none may"},
		{"qmqpservers", Lines, false, "", "qmqpc", "addresses of machines that queue our mail"},
		{"qmtproutes", Pairs, false, "", "remote rspawn", "where mail for some domains goes by QMTP: domain:relay[:port]"},
		{"queuelifetime", Number, false, "604800", "send", "how long a message is tried, in seconds"},
		{"rcpthosts", Lines, false, "", "smtpd qmtpd", "domains for which mail is taken from strangers; without the file, none is"},
		{"relayclients", Lines, false, "", "smtpd qmtpd", "networks whose mail is taken for any domain"},
		{"resolvers", Lines, false, "those of /etc/resolv.conf", "resolve remote tcp-env", "DNS resolvers to ask: ADDRESS or ADDRESS:PORT"},
		{"senderlogins", Pairs, false, "", "smtpd", "which logins may send as whom: address:login,login, @domain:login or @:login; by default each as itself and its extensions"},
		{"showlogin", Number, false, "0", "smtpd", "1: Received fields say who has logged in"},
		{"smtpgreeting", OneLine, true, "", "smtpd", "what SMTP clients are greeted with"},
		{"smtplogins", Secret, false, "", "remote rspawn", "what relays of smtproutes know us by: relay[:port] name password"},
		{"smtproutes", Pairs, false, "", "remote rspawn", "where mail for some domains goes: domain:relay[:port]"},
		{"submitlimit", Number, false, "1000", "smtpd", "recipients in an hour of one login; mail beyond is held; 0 is any"},
		{"tarpitcount", Number, false, "10", "smtpd", "refused commands and recipients of a session, beyond which each further one is answered late"},
		{"tarpitdelay", Number, false, "1", "smtpd", "by how many seconds, 60 at most; 0 is not at all"},
		{"timeoutconnect", Number, false, "60", "remote rspawn", "seconds in which another machine must accept a connection"},
		{"timeoutremote", Number, false, "1200", "remote rspawn", "seconds in which another machine must answer"},
		{"timeoutsmtpd", Number, false, "1200", "smtpd", "seconds in which an SMTP client must go on"},
		{"timeouttls", Number, false, "20", "smtpd qmtpd qmqpd popup", "seconds that a TLS handshake may take"},
		{"tlsclients", Lines, false, "", "smtpd qmtpd", "clients that may send anywhere by their certificates: an e-mail address in one that clientca.pem has signed, or sha256:FINGERPRINT"},
		{"tlspolicy", Pairs, false, "", "remote rspawn", "how much TLS destinations are asked for: domain:none, may, encrypt, verify [name ...] or fingerprint sha256:..."},
		{"virtualdomains", Pairs, false, "", "send", "domains whose mail goes to users of this machine: domain:prefix"},
		{"warnlifetime", Number, false, "0", "send", "the age at which senders are told that their mail is late, in seconds; 0 is never"},
		{"xclient", Lines, false, "", "smtpd", "networks that are believed for whom they speak (XCLIENT)"},
		{"xforward", Lines, false, "", "smtpd", "networks that may say where their mail comes from (XFORWARD), for the log"},
	}
}
