package queuetool

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"qmail/internal/format/envelope"
	"qmail/internal/store/ledger"
	"qmail/internal/store/queue"
	"qmail/internal/store/queue/journal"
	"qmail/internal/system/disk"
	"qmail/internal/system/env"
)

// An export is the line "qmail-queue-export 1", then for each message
//
//	'm', 1 byte flags (1: on hold), 4 bytes length of the envelope, the envelope (format/envelope, trusted form) with
//	the recipients that are not done, 8 bytes length of the body, the body, 4 bytes CRC-32C of all that but the 'm'
//
// and at the end 'e' and 8 bytes how many they were. Numbers are little endian.
const (
	exportMagic = "qmail-queue-export 1\n"
	flagHeld    = 1
	maxExported = 64 << 20 // bytes of an envelope
)

var (
	errExport = errors.New("this is no export of a queue, or it was cut or changed")
	castagnol = crc32.MakeTable(crc32.Castagnoli)
	le        = binary.LittleEndian
)

// backup runs qmail queue export or import. The first may be used while qmail-send runs, the second may not.
func backup(e *env.Env, command string) int {
	d, err := disk.OpenDir(filepath.Join(e.Home, "queue", "journal"))
	if err == nil {
		defer d.Close()
		var n int
		if command == "export" {
			out := bufio.NewWriterSize(e.Stdout, 256<<10)
			n, err = export(d, out)
			err = errors.Join(err, out.Flush())
		} else if err = own(d); err == nil {
			n, err = restore(d, e, bufio.NewReaderSize(e.Stdin, 256<<10))
		}
		fmt.Fprintf(e.Stderr, "qmail-queuetool: %sed %d messages\n", command, n)
	}
	if err != nil {
		fmt.Fprintf(e.Stderr, "qmail-queuetool: %v\n", err)
		return exitLater
	}
	return exitDone
}

// own refuses to make files that qmail-send could not open.
func own(d disk.FS) error {
	info, err := d.Stat(".")
	if err == nil && info.UID != os.Geteuid() {
		err = fmt.Errorf("queue/journal belongs to uid %d: only that user can import", info.UID)
	}
	return err
}

// export writes all messages that are in the queue at the end of it. What the queue has moved while it was read is
// looked for again; what has left it is not to be exported.
func export(d disk.FS, out io.Writer) (count int, err error) {
	if _, err := io.WriteString(out, exportMagic); err != nil {
		return 0, err
	}
	done := map[queue.ID]bool{}
	const looks = 20
	for range looks {
		var again bool
		if again, err = exportOnce(d, out, done); err != nil || !again {
			break
		}
		err = errors.New("the queue changes faster than it can be read")
	}
	if err != nil {
		return len(done), err
	}
	_, err = out.Write(le.AppendUint64([]byte{'e'}, uint64(len(done))))
	return len(done), err
}

// exportOnce writes what is not done; again says that something could not be read any more.
func exportOnce(d disk.FS, out io.Writer, done map[queue.ID]bool) (again bool, err error) {
	v, err := journal.Look(d, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer v.Close()
	err = v.Scan(func(e *queue.Entry) error {
		if done[e.ID] {
			return nil
		}
		if e.Envelope == nil {
			again = true // damaged, or moved
			return nil
		}
		body, err := v.Body(context.Background(), e.ID)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, queue.ErrDamaged) {
			again = true
			return nil
		}
		if err != nil {
			return err
		}
		defer body.Close()
		done[e.ID] = true
		return exportMessage(out, e, body)
	})
	return again, err
}

func exportMessage(out io.Writer, e *queue.Entry, body queue.Body) error {
	env := remaining(e).Append(nil, true)
	head := []byte{0}
	if e.Held {
		head[0] = flagHeld
	}
	head = append(le.AppendUint32(head, uint32(len(env))), env...)
	head = le.AppendUint64(head, uint64(body.Size()))
	if _, err := out.Write([]byte{'m'}); err != nil {
		return err
	}
	sum := crc32.New(castagnol)
	to := io.MultiWriter(out, sum)
	if _, err := to.Write(head); err != nil {
		return err
	}
	if n, err := io.Copy(to, io.NewSectionReader(body, 0, body.Size())); err != nil || n != body.Size() {
		return errors.Join(err, fmt.Errorf("message %v: %d bytes of %d", e.ID, n, body.Size()))
	}
	_, err := out.Write(le.AppendUint32(nil, sum.Sum32()))
	return err
}

// remaining is the envelope with the recipients that are still to be seen to.
func remaining(e *queue.Entry) *envelope.Envelope {
	var left []uint32
	for _, o := range e.Open {
		left = append(left, o.Recipient)
	}
	for _, f := range e.Failed { // they fail again, and then their sender is told
		left = append(left, f.Recipient)
	}
	slices.Sort(left)
	env := *e.Envelope
	env.Recipients, env.RecipientOptions = nil, nil
	for i, r := range left {
		env.Recipients = append(env.Recipients, e.Envelope.Recipients[r])
		if options := e.Envelope.RecipientOptions[int(r)]; options != nil {
			if env.RecipientOptions == nil {
				env.RecipientOptions = map[int][]string{}
			}
			env.RecipientOptions[i] = options
		}
	}
	return &env
}

// restore puts the messages of an export into the queue, under new numbers. Nobody else may have it open.
func restore(d disk.FS, e *env.Env, in io.Reader) (count int, err error) {
	magic := make([]byte, len(exportMagic))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != exportMagic {
		return 0, errExport
	}
	warn := func(text string) { fmt.Fprintln(e.Stderr, text) }
	store, err := journal.Open(d, journal.Options{Now: e.Now, Warn: warn, Account: ledger.New(d, ledger.Options{Now: e.Now, Warn: warn})})
	if err != nil {
		return 0, err
	}
	for err == nil {
		var kind [1]byte
		if _, err = io.ReadFull(in, kind[:]); err != nil {
			err = errExport
			break
		}
		if kind[0] == 'e' {
			var b [8]byte
			if _, err = io.ReadFull(in, b[:]); err != nil || le.Uint64(b[:]) != uint64(count) {
				err = errExport
			}
			break
		}
		if kind[0] != 'm' {
			err = errExport
			break
		}
		if err = restoreMessage(store, in); err == nil {
			count++
		}
	}
	return count, errors.Join(err, store.Close())
}

func restoreMessage(store queue.Store, in io.Reader) error {
	sum := crc32.New(castagnol)
	from := io.TeeReader(in, sum)
	head := make([]byte, 5)
	if _, err := io.ReadFull(from, head); err != nil || le.Uint32(head[1:]) > maxExported {
		return errExport
	}
	records, err := io.ReadAll(io.LimitReader(from, int64(le.Uint32(head[1:]))))
	size := make([]byte, 8)
	if err == nil {
		_, err = io.ReadFull(from, size)
	}
	if err != nil {
		return errExport
	}
	env, err := envelope.Parse(records, true, 0)
	if err != nil {
		return errExport
	}
	spool, err := store.Spool()
	if err != nil {
		return err
	}
	defer spool.Close()
	if _, err := io.CopyN(struct{ io.Writer }{spool}, from, int64(le.Uint64(size))); err != nil {
		return errExport
	}
	want := make([]byte, 4)
	if _, err := io.ReadFull(in, want); err != nil || le.Uint32(want) != sum.Sum32() {
		return errExport
	}
	b := queue.Batch{Accepts: []queue.Accept{{ID: store.NewID(), Envelope: env, Spool: spool}}}
	if head[0]&flagHeld != 0 {
		b.Holds = []queue.Hold{{ID: b.Accepts[0].ID, On: true}}
	}
	done := make(chan error, 1)
	store.Commit(b, func(err error) { done <- err })
	return <-done
}
