package schedule

// slab holds values by small numbers instead of pointers: half the size, and nothing for the garbage
// collector to follow. Number 0 is nobody. Chunks never move, so a *T stays good until its free.
type slab[T any] struct {
	chunks [][]T
	used   uint32 // numbers given out so far, freed ones included
	spare  []uint32
}

const (
	chunkBits = 10
	chunkSize = 1 << chunkBits
)

func (s *slab[T]) at(n uint32) *T { return &s.chunks[n>>chunkBits][n&(chunkSize-1)] }

// take gives out a zero T.
func (s *slab[T]) take() (uint32, *T) {
	if last := len(s.spare) - 1; last >= 0 {
		n := s.spare[last]
		s.spare = s.spare[:last]
		return n, s.at(n)
	}
	if s.used == 0 {
		s.used = 1
	}
	n := s.used
	if int(n>>chunkBits) == len(s.chunks) {
		s.chunks = append(s.chunks, make([]T, chunkSize))
	}
	s.used++
	return n, s.at(n)
}

func (s *slab[T]) free(n uint32) {
	var zero T
	*s.at(n) = zero
	s.spare = append(s.spare, n)
}

func (s *slab[T]) live() int {
	if s.used == 0 {
		return 0
	}
	return int(s.used) - 1 - len(s.spare)
}
