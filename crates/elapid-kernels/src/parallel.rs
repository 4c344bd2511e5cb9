//! Splitting outputs among threads. The split never changes a result: the values of a part depend only on its own rows, and
//! sums over rows use blocks whose size does not depend on the number of threads.

use crate::RowsMut;

/// Outputs that can be split in two at a row (or a column, see [`Columns`]).
pub(crate) trait Cut: Send + Sized {
    /// The part before `at`, and the part from `at` on.
    fn cut(self, at: usize) -> (Self, Self);
}

impl Cut for () {
    fn cut(self, _: usize) -> (Self, Self) {
        ((), ())
    }
}

impl<T: Send> Cut for &mut [T] {
    fn cut(self, at: usize) -> (Self, Self) {
        self.split_at_mut(at)
    }
}

impl<T: Send> Cut for Vec<T> {
    fn cut(mut self, at: usize) -> (Self, Self) {
        let right = self.split_off(at);
        (self, right)
    }
}

impl<T: Copy + Send> Cut for RowsMut<'_, T> {
    fn cut(self, at: usize) -> (Self, Self) {
        self.split_rows(at)
    }
}

impl<A: Cut> Cut for Option<A> {
    fn cut(self, at: usize) -> (Self, Self) {
        self.map_or((None, None), |a| {
            let (left, right) = a.cut(at);
            (Some(left), Some(right))
        })
    }
}

impl<A: Cut, B: Cut> Cut for (A, B) {
    fn cut(self, at: usize) -> (Self, Self) {
        let ((a, c), (b, d)) = (self.0.cut(at), self.1.cut(at));
        ((a, b), (c, d))
    }
}

impl<A: Cut, B: Cut, C: Cut> Cut for (A, B, C) {
    fn cut(self, at: usize) -> (Self, Self) {
        let ((a, d), (b, e), (c, f)) = (self.0.cut(at), self.1.cut(at), self.2.cut(at));
        ((a, b, c), (d, e, f))
    }
}

/// A matrix that is split at a column.
pub(crate) struct Columns<'a>(pub(crate) RowsMut<'a>);

impl Cut for Columns<'_> {
    fn cut(self, at: usize) -> (Self, Self) {
        let (left, right) = self.0.split_columns(at);
        (Self(left), Self(right))
    }
}

/// A slice of which each unit owns `.1` neighbouring elements.
pub(crate) struct Each<'a, T = f32>(pub(crate) &'a mut [T], pub(crate) usize);

impl<T: Send> Cut for Each<'_, T> {
    fn cut(self, at: usize) -> (Self, Self) {
        let (left, right) = self.0.split_at_mut(at * self.1);
        (Self(left, self.1), Self(right, self.1))
    }
}

/// A matrix of which each unit owns `.1` neighbouring rows.
pub(crate) struct Blocks<'a>(pub(crate) RowsMut<'a>, pub(crate) usize);

impl Cut for Blocks<'_> {
    fn cut(self, at: usize) -> (Self, Self) {
        let (left, right) = self.0.split_rows(at * self.1);
        (Self(left, self.1), Self(right, self.1))
    }
}

/// Calls `f(first, count, part)` over units `0..count`, split at multiples of `grain`, in parallel. A grain of at least
/// `count` is a plain call that wakes no thread.
pub(crate) fn split<C: Cut>(count: usize, grain: usize, parts: C, f: &(impl Fn(usize, usize, C) + Sync)) {
    fn part<C: Cut>(from: usize, count: usize, grain: usize, parts: C, f: &(impl Fn(usize, usize, C) + Sync)) {
        if count <= grain {
            return f(from, count, parts);
        }
        let at = (count / 2).next_multiple_of(grain);
        let (left, right) = parts.cut(at);
        crate::team::join(|| part(from, at, grain, left, f), || part(from + at, count - at, grain, right, f));
    }
    part(0, count, grain.max(1), parts, f);
}

/// Calls `f` with each of these tasks, in parallel.
pub(crate) fn each<T: Send>(tasks: Vec<T>, f: &(impl Fn(T) + Sync)) {
    split(tasks.len(), 1, tasks, &|_, _, tasks| tasks.into_iter().for_each(f));
}

/// A grain for [`split`], for units of `work` elementary steps each: a part has at least `least` steps, there are at most a
/// few parts per thread, and parts are multiples of `multiple` units.
pub(crate) fn grain(count: usize, work: usize, least: usize, multiple: usize) -> usize {
    // In a team a part costs much less than a thread that wakes up.
    let least = if crate::team::is_active() { least / 8 } else { least };
    if count.saturating_mul(work) <= least {
        return usize::MAX;
    }
    let parts = 4 * crate::team::threads();
    count.div_ceil(parts).max(least / work.max(1)).max(1).next_multiple_of(multiple)
}
