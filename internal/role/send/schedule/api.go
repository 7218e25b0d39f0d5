// Package schedule decides which recipients are tried when: the pure heart of qmail-send.
//
// Events and the time go in (Add, Done, Alarm, Hold, Remove ...); jobs (Next) and a wake-up time (Wake) come
// out. There is no goroutine, clock or I/O here, and one caller at a time. A caller's loop is
//
//	s := schedule.New(schedule.Defaults(), now)
//	for {
//		for job, ok := s.Next(now); ok; job, ok = s.Next(now) {
//			start(job) // ends in an event that calls s.Done(job.ID, letters, contact, now)
//		}
//		at, ok := s.Wake(now)   // nothing can start before at; without ok only an event can change that
//		event := wait(at, ok)
//		now = time.Now()
//		event.apply(s, now)     // s.Add, s.Done, s.Alarm ...
//	}
//
// # Units and passes
//
// The recipients of one message at one destination of one channel are a unit. A unit is tried in passes, as
// qmail-send passes over a channel file: when a pass starts, the time of the next one is fixed,
//
//	next = birth + (isqrt(now - birth) + skip)², skip = 10 (local), 20 (remote)
//
// and so is whether it is the last: a pass that starts after birth + lifetime is dying. A pass hands out each
// recipient once, in jobs of at most PerJob recipients, and is over when all its jobs are done; what was put
// off waits for the next. So a recipient is never in two jobs at a time, and an over-age message always
// gets one more real attempt.
//
// # Turns
//
// A free place of a channel goes to the destination that has the fewest jobs running; among equals, to the
// sender that had the fewest turns. Inside a destination senders take turns too, first attempts and retries
// apart, and a long list of recipients goes to the back after each job. So neither a slow
// destination nor a burst of one sender holds back the others.
//
// Every destination has a window of simultaneous jobs, which grows by one with each job that was answered
// and halves with each that found nobody. At a window of one it counts as dead: what was ready there when
// it failed is put off to its own next time, as if it had been tried, and the next that comes due is the
// probe. Not put off but tried are messages whose pass is dying and, until ten jobs in a row found
// nobody, those that were never tried.
//
// Of a channel's places one in sixteen or so is never taken by the second and later jobs of a destination.
//
// # Costs
//
// Waiting units stand in a timing wheel, so an event costs the same with a thousand and with a million of
// them, and a destination at its limit costs nothing. A waiting single-recipient message takes about 120 bytes.
//
// # Clocks
//
// Times are kept in whole seconds of the wall clock. A birth in the future counts as now. When the clock is set
// back, births and plans made by the wrong clock are cut to what the formula gives now. When it leaps
// ahead of the monotonic clock (a wrong clock, or a machine that slept), nothing is dying for an hour.
package schedule

import "time"

// Channel is one of qmail's two ways out.
type Channel uint8

// The channels.
const (
	Local Channel = iota
	Remote
	channels
)

func (c Channel) String() string {
	if c == Local {
		return "local"
	}
	return "remote"
}

// Limits are what a channel may do at a time.
type Limits struct {
	Concurrency    int // jobs at once (concurrencylocal, concurrencyremote); 0 holds the channel
	PerDestination int // jobs at once to one destination; 0 means no limit but Concurrency
	Initial        int // the window a destination starts with
	PerJob         int // recipients in one job
}

// Options are the settings of a Scheduler.
type Options struct {
	Lifetime time.Duration // queuelifetime; 0 means that the first attempt after the second of birth is the last
	Channels [channels]Limits
	Seed     uint64 // any secret number: who guesses it can share another sender's turns
	Idle     int    // how many destinations without mail are remembered
}

// Defaults are qmail's, with one recipient per local and 100 per remote job.
func Defaults() Options {
	return Options{
		Lifetime: 604800 * time.Second,
		Channels: [channels]Limits{
			Local:  {Concurrency: 10, Initial: 10, PerJob: 1},
			Remote: {Concurrency: 20, PerDestination: 20, Initial: 5, PerJob: 100},
		},
		Idle: 4096,
	}
}

// Message is what Add needs to know.
type Message struct {
	ID         uint64
	Birth      time.Time
	Source     uint64 // equal for mail of one sender, who takes turns with the others: a hash of the sender, say
	Alone      bool   // one recipient per job: the sender is expanded per recipient (VERP)
	Held       bool   // see Hold
	Recipients []Recipient
}

// Recipient is an open recipient of a message.
type Recipient struct {
	Index       uint32 // in the message's envelope; indexes must ascend
	Channel     Channel
	Destination string    // who shares a window: the domain, or the local user
	Next        time.Time // the planned attempt, from before a restart; zero for one never tried
}

// Job is an attempt to start now. Recipients belongs to the Scheduler and is valid until Done.
type Job struct {
	ID          uint64 // never the same twice
	Message     uint64
	Channel     Channel
	Destination string
	Recipients  []uint32  // indexes, ascending in a first pass
	Dying       bool      // what would be put off is refused: "this message has been in the queue too long"
	Next        time.Time // when those that are put off will be tried again
}

// Contact is what a job says about its destination, apart from its recipients.
type Contact uint8

// What became of the destination.
const (
	Answered    Contact = iota // somebody was there, whatever the answer: more jobs at once may go there
	Unreachable                // no connection, or one that broke: fewer jobs at once
	Neutral                    // trouble of our own that says nothing about the destination
	Lost                       // whoever had the job died: those without K or D are tried again within seconds
)

// Progress is how many recipients of a message are still open, in flight included. When none is left on
// either channel the message is forgotten.
type Progress struct {
	Open [channels]int
}

// Finished reports that no recipient is left.
func (p Progress) Finished() bool { return p.Open[Local] == 0 && p.Open[Remote] == 0 }

// State of some recipients.
type State uint8

// The states. Every open recipient is in one of them.
const (
	Waiting State = iota // until Next
	Ready                // due, and not yet begun
	Running              // in a job
	Held                 // until Release
)

func (s State) String() string { return [...]string{"waiting", "ready", "running", "held"}[s] }

// Plan says what is to happen to some recipients of a message.
type Plan struct {
	Message     uint64
	Channel     Channel
	Destination string
	Recipients  []uint32
	State       State
	Next        time.Time // of Waiting, the next attempt; else the one after the next
}

// Stats are counts for status lines and tools.
type Stats struct {
	Messages int
	Channels [channels]ChannelStats
}

// ChannelStats are the counts of a channel.
type ChannelStats struct {
	Concurrency  int // the limit
	Jobs         int // running
	InFlight     int // recipients in running jobs
	Open         int // recipients, in flight included
	Ready        int // units that are due
	Destinations int // with mail
}

// DestinationStats is one destination with mail.
type DestinationStats struct {
	Channel  Channel
	Name     string
	Units    int // messages with recipients there
	Ready    int // of them, due
	Jobs     int // running
	Window   int // how many may run
	Failures int // unreachable in a row
}
