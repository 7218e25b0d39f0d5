package journal

import "qmail/internal/store/queue"

// failures are the recipients of a message that failed for good and wait for their bounce, in the order in which
// they failed. There are few: most are closed by their bounce at once.
type failures struct {
	list []failure
	at   map[uint32]int // where each is in list
}

// failure is one of them; an outcome of 0 marks one that was forgotten.
type failure struct {
	recipient uint32
	outcome   queue.Outcome
	text      string
}

func (f *failures) has(i uint32) bool {
	_, ok := f.at[i]
	return ok
}

// put adds a failure at the end. One said again in the same words keeps its place.
func (f *failures) put(one failure) {
	if i, ok := f.at[one.recipient]; ok {
		if f.list[i] == one {
			return
		}
		f.drop(one.recipient)
	}
	if f.at == nil {
		f.at = map[uint32]int{}
	}
	f.at[one.recipient] = len(f.list)
	f.list = append(f.list, one)
}

// forget takes recipients out, all of them if who is empty.
func (f *failures) forget(who runs, limit uint32) {
	if len(f.at) == 0 {
		return
	}
	if len(who) == 0 {
		*f = failures{}
		return
	}
	who.each(limit, f.drop)
}

func (f *failures) drop(i uint32) {
	at, ok := f.at[i]
	if !ok {
		return
	}
	f.list[at] = failure{}
	delete(f.at, i)
	if len(f.list) > 2*len(f.at)+16 {
		f.compact()
	}
}

func (f *failures) compact() {
	list := f.list[:0]
	for _, one := range f.list {
		if one.outcome != 0 {
			f.at[one.recipient] = len(list)
			list = append(list, one)
		}
	}
	clear(f.list[len(list):])
	f.list = list
}

// append writes the failures as items; neighbours that failed in the same words share one.
func (f *failures) append(dst []byte, id queue.ID) []byte {
	var set []uint32
	var last failure
	flush := func() {
		if len(set) > 0 {
			it := item{kind: kindFail, flags: flagCopy, id: id, outcome: last.outcome, who: makeRuns(nil, set), text: []byte(last.text)}
			dst = it.append(dst)
		}
		set = set[:0]
	}
	for _, one := range f.list {
		if one.outcome == 0 {
			continue
		}
		if one.outcome != last.outcome || one.text != last.text {
			flush()
			last = one
		}
		set = append(set, one.recipient)
	}
	flush()
	return dst
}

func (f *failures) appendTo(dst []queue.Failed) []queue.Failed {
	for _, one := range f.list {
		if one.outcome != 0 {
			dst = append(dst, queue.Failed{Recipient: one.recipient, Outcome: one.outcome, Text: one.text})
		}
	}
	return dst
}
