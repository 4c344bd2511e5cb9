//! Outputs cut at rows and at heads, for parts that run in parallel.

use std::ops::Range;

use crate::RowsMut;
use crate::reuse::List;

/// For each range of rows, which do not overlap, the columns of each head. Rows outside all ranges go to `outside`.
pub(super) fn pieces<'a>(
    all: RowsMut<'a>,
    ranges: &[Range<usize>],
    columns: usize,
    outside: impl Fn(RowsMut<'a>),
) -> List<List<RowsMut<'a>>> {
    let mut order: List<usize> = (0..ranges.len()).collect();
    order.sort_unstable_by_key(|&i| (ranges[i].start, ranges[i].end, i));
    let mut found: List<List<RowsMut<'a>>> = ranges.iter().map(|_| List::new()).collect();
    let (mut rest, mut at) = (all, 0);
    for i in order {
        let range = &ranges[i];
        let (before, from) = rest.split_rows(range.start.saturating_sub(at));
        let (mut mine, after) = from.split_rows(range.len());
        outside(before);
        (rest, at) = (after, range.end.max(at));
        while mine.cols() > columns {
            let (head, others) = mine.split_columns(columns);
            found[i].push(head);
            mine = others;
        }
        found[i].push(mine);
    }
    outside(rest);
    found
}
