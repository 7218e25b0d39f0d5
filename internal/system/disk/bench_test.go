package disk

import "testing"

// BenchmarkSync is the floor of every commit: 64 KiB into a file that is already there, and its sync.
func BenchmarkSync(b *testing.B) {
	for _, tt := range []struct {
		name  string
		fresh bool
	}{{"room reserved", true}, {"written before", false}} {
		b.Run(tt.name, func(b *testing.B) {
			d, err := OpenDir(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			f, err := d.Create("f", 0o600)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			const size, chunk = 64 << 20, 64 << 10
			buf := make([]byte, chunk)
			if err := f.Allocate(size); err != nil {
				b.Fatal(err)
			}
			for at := int64(0); !tt.fresh && at < size; at += chunk {
				if _, err := f.WriteAt(buf, at); err != nil {
					b.Fatal(err)
				}
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(chunk)
			b.ResetTimer()
			for i := range b.N {
				if _, err := f.WriteAt(buf, int64(i)*chunk%size); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
