// Positions into pages, and out of them. A block does PAGE / 4 positions of a row of the batch.
//
//   store:   the page of position start + i, at its slot  =  x[row l + at + i]    for i < count
//   gather:  y[i]  =  what is at slot i % PAGE of page i / PAGE

#define PAGE 64
#define THREADS 256
#define SLOTS 16

struct Args {
  Mat<T> x;
  // Per row: start, at, count, and where its addresses begin.
  const u64* rows;
  const u64* addresses;
  i64 l;
  i32 groups, dim, of_pages;
};

extern "C" __global__ void __launch_bounds__(THREADS) move(const __grid_constant__ Args a) {
  const u64* row = a.rows + 4 * i64(blockIdx.y);
  i64 start = row[0], at = row[1], count = row[2];
  const u64* pages = a.addresses + row[3];
  int cols = a.groups * a.dim;
  for (int j = threadIdx.x; j < SLOTS * cols; j += THREADS) {
    i64 i = i64(blockIdx.x) * SLOTS + j / cols;
    int c = j % cols, group = c / a.dim;
    if (i >= count) return;
    // Addresses begin with the page of `start`.
    i64 slot = start % PAGE + i;
    T* page = reinterpret_cast<T*>(pages[slot / PAGE]) + (i64(group) * PAGE + slot % PAGE) * a.dim + (c - group * a.dim);
    T* other = a.x.row(i64(blockIdx.y) * a.l + at + i) + c;
    if (a.of_pages) *other = *page;
    else *page = *other;
  }
}
