package send

import (
	"context"
	"sync"
	"time"

	"qmail/internal/proto/jobs"
	"qmail/internal/store/queue"
	"qmail/internal/system/ipc"
)

// worker is one connection to somebody who delivers: qmail-rspawn, or the qmail-local of one user. The core
// puts orders into its queue and never waits for it; its goroutine reads bodies, sends them once however many
// jobs need them, and starts the jobs.
type worker struct {
	store   queue.Store
	events  func(any) // to the core
	connect func(context.Context) (*ipc.Conn, error)

	mu     sync.Mutex
	wake   sync.Cond
	orders []order
	closed bool

	// Of the goroutine alone.
	client *jobs.Client
	bodies map[queue.ID]*loadedBody
	owner  map[uint32]queue.ID // which body a running job uses
	free   []uint32            // body numbers to be used again
	last   uint32

	// Of the core alone.
	running  int       // jobs ordered and not over
	idle     time.Time // since when there are none
	accounts string    // the key under which the core keeps it
}

// loadedBody is a body that the peer has.
type loadedBody struct {
	number uint32
	jobs   int
}

// order is something for the worker's goroutine to do.
type order struct {
	start *jobs.Job // or nil: the job is over
	id    queue.ID  // whose body it needs
	job   uint32
	ask   *question // instead of all that
}

// question is something to be asked. done is called once.
type question struct {
	*jobs.Question
	done func(answer []byte, err error)
}

// Events of a worker for the core.
type (
	// jobResults reports recipients of a job; over ends it.
	jobResults struct {
		job     uint32
		results []jobs.Result
		over    bool
	}
	// jobFailed says that a job could not be given out. What the report says holds for all its recipients;
	// without one the worker is lost.
	jobFailed struct {
		job    uint32
		report string
	}
	// workerGone is the last event of a worker.
	workerGone struct{ w *worker }
)

func newWorker(store queue.Store, events func(any), connect func(context.Context) (*ipc.Conn, error)) *worker {
	w := &worker{
		store: store, events: events, connect: connect,
		bodies: map[queue.ID]*loadedBody{}, owner: map[uint32]queue.ID{},
	}
	w.wake.L = &w.mu
	return w
}

// start orders a job; over says that one has ended. Both return at once.
func (w *worker) start(job uint32, j *jobs.Job, id queue.ID) {
	w.put(order{start: j, id: id, job: job})
}
func (w *worker) over(job uint32) { w.put(order{job: job}) }

// ask orders a question.
func (w *worker) ask(q *jobs.Question, done func([]byte, error)) {
	w.put(order{ask: &question{q, done}})
}

func (w *worker) put(o order) {
	w.mu.Lock()
	w.orders = append(w.orders, o)
	w.mu.Unlock()
	w.wake.Signal()
}

// close ends the worker once it has nothing left to do; its connection is closed, and Gone follows.
func (w *worker) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.wake.Signal()
}

// take waits for orders; none means that the worker shall end.
func (w *worker) take(spare []order) []order {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.orders) == 0 && !w.closed {
		w.wake.Wait()
	}
	orders := w.orders
	w.orders = spare[:0]
	return orders
}

// run is the worker's goroutine. Jobs ordered after the connection is lost fail one by one until the core,
// having heard of it, closes the worker.
func (w *worker) run(ctx context.Context) {
	conn, err := w.connect(ctx)
	if err != nil {
		w.refuseAll(err)
		return
	}
	w.client = jobs.NewClient(conn, (*listener)(w))
	var orders []order
	for {
		if orders = w.take(orders); len(orders) == 0 {
			w.client.Close()
			return
		}
		for _, o := range orders {
			if o.ask != nil {
				if err := w.client.Ask(o.ask.Question, o.ask.done); err != nil {
					o.ask.done(nil, err)
				}
				continue
			}
			if o.start == nil {
				w.release(o.job)
				continue
			}
			if report, err := w.give(ctx, o); err != nil {
				w.events(jobFailed{o.job, report})
			}
		}
	}
}

// refuseAll answers for a peer that could not be reached. A report in err is what the recipients get.
func (w *worker) refuseAll(err error) {
	report := reportOf(err)
	w.events(workerGone{w})
	for {
		orders := w.take(nil)
		if len(orders) == 0 {
			return
		}
		for _, o := range orders {
			if o.ask != nil {
				o.ask.done(nil, err)
			}
			if o.start != nil {
				w.events(jobFailed{o.job, report})
			}
		}
	}
}

var errBody = "Zqmail-send unable to open message. (#4.3.0)\n"

// give starts one job. With an error, report is for its recipients, or empty if the connection is at fault.
func (w *worker) give(ctx context.Context, o order) (report string, err error) {
	if !o.start.Verify {
		b, err := w.load(ctx, o.id)
		if err != nil {
			return errBody, err
		}
		o.start.Body = b.number
		b.jobs++
		w.owner[o.job] = o.id
	}
	if err := w.client.Start(o.job, o.start); err != nil {
		w.release(o.job)
		return "", err
	}
	return "", nil
}

// load makes sure that the peer has a body.
func (w *worker) load(ctx context.Context, id queue.ID) (*loadedBody, error) {
	if b := w.bodies[id]; b != nil {
		return b, nil
	}
	body, err := w.store.Body(ctx, id)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b := &loadedBody{number: w.number()}
	if err := w.sendBody(b.number, body); err != nil {
		w.client.Forget(b.number)
		w.free = append(w.free, b.number)
		return nil, err
	}
	w.bodies[id] = b
	return b, nil
}

func (w *worker) number() uint32 {
	if n := len(w.free); n > 0 {
		number := w.free[n-1]
		w.free = w.free[:n-1]
		return number
	}
	w.last++
	return w.last
}

func (w *worker) sendBody(number uint32, body queue.Body) error {
	if f := body.File(); f != nil {
		return w.client.LoadFile(number, f, 0, body.Size())
	}
	pieces, err := piecesOf(body)
	if err != nil {
		return err
	}
	return w.client.Load(number, pieces...)
}

// piecesOf is a small body as slices.
func piecesOf(body queue.Body) ([][]byte, error) {
	if b, ok := body.(queue.Bytes); ok {
		return b.Pieces(), nil
	}
	buf := make([]byte, body.Size())
	if n, err := body.ReadAt(buf, 0); n < len(buf) {
		return nil, err
	}
	return [][]byte{buf}, nil
}

// release lets go of the body of a job that is over.
func (w *worker) release(job uint32) {
	id, ok := w.owner[job]
	if !ok {
		return
	}
	delete(w.owner, job)
	b := w.bodies[id]
	if b.jobs--; b.jobs > 0 {
		return
	}
	delete(w.bodies, id)
	w.free = append(w.free, b.number)
	w.client.Forget(b.number) // if this fails the connection is gone, and Gone says so
}

// listener passes what a client hears to the core.
type listener worker

func (l *listener) Results(job uint32, results []jobs.Result, over bool) {
	l.events(jobResults{job, results, over})
}

func (l *listener) Gone(running []uint32, err error) {
	for _, job := range running {
		l.events(jobFailed{job: job})
	}
	l.events(workerGone{(*worker)(l)})
}
