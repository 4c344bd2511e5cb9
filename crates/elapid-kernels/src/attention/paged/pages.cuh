// Pages: the positions of a row of a cache, PAGE at a time, each [groups][PAGE][dim]. A row's table has `sinks` columns for
// its first pages and `ring` more, which later pages use in turn; an address of 0 is a page that is not there.

#define PAGE 64

struct Table {
  const u64* addresses;  // [rows][sinks + ring]
  i32 sinks, ring, grows, unused;
  __device__ __forceinline__ u64 page(int row, int k) const {
    if (k >= sinks && grows && k - sinks >= ring) return 0;
    int column = k < sinks ? k : sinks + (grows ? k - sinks : (k - sinks) % ring);
    return addresses[i64(row) * (sinks + ring) + column];
  }
};
