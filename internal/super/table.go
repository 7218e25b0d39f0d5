package super

// process is one line of the process table. The program is qmail-name.
type process struct {
	name string
	// user is whom it runs as in privileged mode; group is the user's own unless named.
	user, group string
	// instead is whom it runs as where user, who is younger than qmail, is missing.
	instead string
	// spare says that the others can do without it where its user, who is younger than qmail, is missing.
	spare bool
	// links are the roles it talks to over a socket pair. Each pair is named at one of its ends only.
	links []string
	// services are the kinds of sockets in control/listen that it serves. It does not run while there are none.
	services []string
	// files are below the home; if there are some, it runs only while one of them exists.
	files []string
	// doors are the Unix sockets below queue/ that it listens to, and their names.
	doors []string
	// keeps are the variables of our own environment that it gets: names of programs in the place of ours.
	keeps []string
	// stop is its turn (stopTimes) when all are stopped, from 0: who accepts mail goes first, who delivers it last.
	stop int
}

// table is the process table, in the order of starting.
var table = []process{
	{name: "send", user: "qmails", doors: []string{"enqueue", "admin"}, keeps: []string{"QMAILREMOTE"}, stop: 1},
	{name: "lspawn", user: "root", group: "qmail", links: []string{"send"}, keeps: []string{"QMAILLOCAL"}, stop: 2},
	{name: "resolve", user: "qmailn", instead: "qmailr", stop: 2},
	{name: "rspawn", user: "qmailr", links: []string{"send", "resolve"}, keeps: []string{"QMAILREMOTE"}, stop: 2},
	{name: "keyd", user: "qmailk", spare: true, stop: 2},
	{name: "checkpw", user: "root", files: []string{"control/checkpassword"}, stop: 2},
	{name: "authd", user: "qmailk", spare: true, links: []string{"checkpw"},
		files: []string{"users/passwd", "control/checkpassword", "control/dovecotauth"}, stop: 2},
	{name: "smtpd", user: "qmaild", links: []string{"authd", "keyd", "send"}, services: []string{"smtp", "submission", "submissions", "lmtp"}, stop: 0},
	{name: "qmtpd", user: "qmaild", links: []string{"keyd", "send"}, services: []string{"qmtp", "qmtps"}, stop: 0},
	{name: "qmqpd", user: "qmaild", links: []string{"keyd", "send"}, services: []string{"qmqp", "qmqps"}, stop: 0},
	{name: "popup", user: "qmailp", links: []string{"keyd"}, services: []string{"pop3", "pop3s"}, stop: 0},
}
