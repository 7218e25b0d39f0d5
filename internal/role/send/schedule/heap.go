package schedule

// entry is something in a queue: the lowest key first, among equals the first that came.
type entry struct {
	key uint64
	seq uint32
	id  uint32
}

// before compares seq as RFC 1982 does, since it wraps.
func (a entry) before(b entry) bool {
	if a.key != b.key {
		return a.key < b.key
	}
	return int32(a.seq-b.seq) < 0
}

// heap is a queue that things can leave from the middle: moved is told where each of them is.
type heap []entry

func (h *heap) push(e entry, moved func(id uint32, at int)) {
	*h = append(*h, e)
	h.up(len(*h)-1, moved)
}

// remove takes out the entry at a place; remove(0) takes the first.
func (h *heap) remove(at int, moved func(id uint32, at int)) entry {
	q := *h
	out, last := q[at], len(q)-1
	q[at] = q[last]
	*h = q[:last]
	if at < last {
		h.up(h.down(at, moved), moved)
	}
	if cap(q) > 64 && last < cap(q)/4 { // a burst is over
		*h = append(make(heap, 0, cap(q)/2), q[:last]...)
	}
	return out
}

func (h heap) up(i int, moved func(uint32, int)) {
	e := h[i]
	for i > 0 {
		parent := (i - 1) / 4
		if !e.before(h[parent]) {
			break
		}
		h[i] = h[parent]
		moved(h[i].id, i)
		i = parent
	}
	h[i] = e
	moved(e.id, i)
}

// down moves the entry at i to where it belongs below, and says where that is.
func (h heap) down(i int, moved func(uint32, int)) int {
	e := h[i]
	for {
		least := i
		smallest := e
		for child := 4*i + 1; child <= 4*i+4 && child < len(h); child++ {
			if h[child].before(smallest) {
				least, smallest = child, h[child]
			}
		}
		if least == i {
			h[i] = e
			moved(e.id, i)
			return i
		}
		h[i] = smallest
		moved(smallest.id, i)
		i = least
	}
}
