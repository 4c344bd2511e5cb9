//! Where a tensor of elapid lies in a file of another format: an expression over the tensors of the file.
//!
//! Reading evaluates the expression, writing evaluates its inverse; both follow from the one expression, and every element
//! is moved, never computed with, so that what was read is written back bit for bit. The shape of elapid's tensor is given,
//! and those of the file follow from it.

use std::borrow::Cow;

/// A tensor as an expression over the tensors of a file. Rows are indices of the first dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// A tensor of the file.
    File {
        /// Its name there.
        name: String,
        /// Its shape there, if that is another one with as many elements.
        shape: Option<Vec<usize>>,
    },
    /// Tensors one below the other, each with its number of rows: q, k and v of attention as one matrix.
    Rows(Vec<(usize, Stored)>),
    /// Tensors of one shape along a new first dimension: experts.
    Stack(Vec<Stored>),
    /// Matrices `[.. m n]` that the expression has as `[.. n m]`.
    Transposed(Box<Stored>),
    /// Rows that the expression has in groups (heads), each with so many rows of part 0, then of part 1, …; here all rows
    /// of part 0 stand first, group by group, then all of part 1, ….
    Grouped {
        /// The rows in groups.
        of: Box<Stored>,
        /// Number of groups.
        groups: usize,
        /// Rows of each part in one group.
        parts: Vec<usize>,
    },
    /// The elements of an expression that has another shape.
    Viewed {
        /// The expression.
        of: Box<Stored>,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The rows of an expression, which has the last `rows` of them first: a gate that stands after what it gates.
    Turned {
        /// The expression.
        of: Box<Stored>,
        /// How many of its last rows are here the first.
        rows: usize,
    },
    /// Nowhere: the other format's code computes these constants, which a new model of ours has.
    Absent,
}

/// An expression that cannot give a tensor of the wanted shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: wanted {wanted}, got shape {got:?}")]
pub struct StoredError {
    /// The part of the expression.
    pub what: String,
    /// What would do.
    pub wanted: String,
    /// The shape that was asked for.
    pub got: Vec<usize>,
}

/// The tensor of that name in the file.
pub fn file(name: impl Into<String>) -> Stored {
    Stored::File { name: name.into(), shape: None }
}

impl Stored {
    /// A tensor of the file, there in another shape with as many elements. Of another expression this is nothing.
    pub fn shaped(self, shape: &[usize]) -> Self {
        match self {
            Stored::File { name, .. } => Stored::File { name, shape: Some(shape.to_vec()) },
            other => other,
        }
    }

    /// The transposed matrix.
    pub fn transposed(self) -> Self {
        Stored::Transposed(Box::new(self))
    }

    /// The elements in another shape, which this has.
    pub fn viewed(self, shape: &[usize]) -> Self {
        Stored::Viewed { of: Box::new(self), shape: shape.to_vec() }
    }

    /// The rows by part, where this has them by group.
    pub fn grouped(self, groups: usize, parts: &[usize]) -> Self {
        Stored::Grouped { of: Box::new(self), groups, parts: parts.to_vec() }
    }

    /// The last `rows` rows first.
    pub fn turned(self, rows: usize) -> Self {
        Stored::Turned { of: Box::new(self), rows }
    }

    /// Names and shapes of the tensors in the file, for a tensor of this shape.
    ///
    /// # Errors
    /// If the expression cannot give this shape.
    pub fn files(&self, shape: &[usize]) -> Result<Vec<(&str, Vec<usize>)>, StoredError> {
        let wrong = |what: &str, wanted: String| Err(StoredError { what: what.into(), wanted, got: shape.to_vec() });
        match self {
            Stored::File { name, shape: None } => Ok(vec![(name, shape.to_vec())]),
            Stored::File { name, shape: Some(there) } => match elements(there) == elements(shape) {
                true => Ok(vec![(name, there.clone())]),
                false => wrong(name, format!("as many elements as {there:?} has")),
            },
            Stored::Rows(parts) => {
                let rows = parts.iter().try_fold(0_usize, |sum, (rows, _)| sum.checked_add(*rows));
                if shape.is_empty() || rows != Some(shape[0]) {
                    return wrong("rows", format!("{rows:?} rows"));
                }
                collect(parts.iter().map(|(rows, part)| part.files(&with_rows(shape, *rows))))
            }
            Stored::Stack(parts) if shape.first() == Some(&parts.len()) => {
                collect(parts.iter().map(|part| part.files(&shape[1..])))
            }
            Stored::Stack(parts) => wrong("stack", format!("{} as the first dimension", parts.len())),
            Stored::Transposed(of) if shape.len() >= 2 => of.files(&exchanged(shape)),
            Stored::Transposed(_) => wrong("transposed", "two dimensions".into()),
            Stored::Grouped { of, groups, parts } => {
                let group = parts.iter().try_fold(0_usize, |sum, rows| sum.checked_add(*rows));
                let rows = group.and_then(|group| group.checked_mul(*groups));
                if shape.is_empty() || rows != Some(shape[0]) {
                    return wrong("groups", format!("{groups} groups of {parts:?} rows"));
                }
                of.files(shape)
            }
            Stored::Turned { of, rows } => match shape.first().is_some_and(|all| rows <= all) {
                true => of.files(shape),
                false => wrong("turned", format!("{rows} rows or more")),
            },
            Stored::Viewed { of, shape: there } => match elements(there) == elements(shape) {
                true => of.files(there),
                false => wrong("viewed", format!("as many elements as {there:?} has")),
            },
            Stored::Absent => Ok(Vec::new()),
        }
    }

    /// Reads a tensor of this shape; nothing for one that is absent. `file` gives the elements of the tensor with that name, which must have that shape.
    ///
    /// # Errors
    /// If the expression cannot give this shape, and those of `file`.
    pub fn read<T: Copy, E: From<StoredError>>(
        &self,
        shape: &[usize],
        file: &mut impl FnMut(&str, &[usize]) -> Result<Vec<T>, E>,
    ) -> Result<Vec<T>, E> {
        self.files(shape)?;
        self.evaluate(shape, file)
    }

    /// Names of the tensors in the file.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Stored::File { name, .. } => vec![name],
            Stored::Rows(parts) => parts.iter().flat_map(|(_, part)| part.names()).collect(),
            Stored::Stack(parts) => parts.iter().flat_map(Stored::names).collect(),
            Stored::Transposed(of)
            | Stored::Grouped { of, .. }
            | Stored::Turned { of, .. }
            | Stored::Viewed { of, .. } => of.names(),
            Stored::Absent => Vec::new(),
        }
    }

    /// Writes a tensor of this shape: gives name, shape and elements of each tensor of the file to `file`, borrowed where
    /// they lie in one piece.
    ///
    /// # Errors
    /// If the expression cannot give this shape, and those of `file`.
    ///
    /// # Panics
    /// If there are not as many values as the shape has elements.
    pub fn write<'v, T: Copy, E: From<StoredError>>(
        &self,
        shape: &[usize],
        values: &'v [T],
        file: &mut impl FnMut(&str, &[usize], Cow<'v, [T]>) -> Result<(), E>,
    ) -> Result<(), E> {
        assert_eq!(Some(values.len()), elements(shape), "values for shape {shape:?}");
        self.files(shape)?;
        self.invert(shape, Cow::Borrowed(values), file)
    }

    /// What [`read`](Self::read) does, for a shape that was checked.
    fn evaluate<T: Copy, E>(
        &self,
        shape: &[usize],
        file: &mut impl FnMut(&str, &[usize]) -> Result<Vec<T>, E>,
    ) -> Result<Vec<T>, E> {
        match self {
            Stored::File { name, shape: there } => file(name, there.as_deref().unwrap_or(shape)),
            Stored::Rows(parts) => {
                let mut values = Vec::with_capacity(elements(shape).unwrap_or_default());
                for (rows, part) in parts {
                    values.extend(part.evaluate(&with_rows(shape, *rows), file)?);
                }
                Ok(values)
            }
            Stored::Stack(parts) => {
                let mut values = Vec::with_capacity(elements(shape).unwrap_or_default());
                for part in parts {
                    values.extend(part.evaluate(&shape[1..], file)?);
                }
                Ok(values)
            }
            Stored::Transposed(of) => {
                let there = exchanged(shape);
                Ok(transpose(&of.evaluate(&there, file)?, &there))
            }
            Stored::Grouped { of, groups, parts } => {
                let there = of.evaluate(shape, file)?;
                let mut values = Vec::with_capacity(there.len());
                for (_, range) in by_part(shape, *groups, parts) {
                    values.extend_from_slice(&there[range]);
                }
                Ok(values)
            }
            Stored::Turned { of, rows } => {
                let mut values = of.evaluate(shape, file)?;
                values.rotate_right(rows * row_elements(shape));
                Ok(values)
            }
            Stored::Viewed { of, shape: there } => of.evaluate(there, file),
            Stored::Absent => Ok(Vec::new()),
        }
    }

    /// What [`write`](Self::write) does, for a shape that was checked.
    fn invert<'v, T: Copy, E>(
        &self,
        shape: &[usize],
        values: Cow<'v, [T]>,
        file: &mut impl FnMut(&str, &[usize], Cow<'v, [T]>) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Stored::File { name, shape: there } => file(name, there.as_deref().unwrap_or(shape), values),
            Stored::Rows(parts) => {
                let (mut from, row) = (0, row_elements(shape));
                for (rows, part) in parts {
                    part.invert(&with_rows(shape, *rows), slice(&values, from..from + rows * row), file)?;
                    from += rows * row;
                }
                Ok(())
            }
            Stored::Stack(parts) => {
                let size = row_elements(shape);
                let slices = (0..parts.len()).map(|i| slice(&values, i * size..(i + 1) * size));
                parts.iter().zip(slices).try_for_each(|(part, slice)| part.invert(&shape[1..], slice, file))
            }
            Stored::Transposed(of) => of.invert(&exchanged(shape), Cow::Owned(transpose(&values, shape)), file),
            Stored::Grouped { of, groups, parts } => {
                let mut there = values.to_vec();
                for (from, range) in by_part(shape, *groups, parts) {
                    let len = range.len();
                    there[range].copy_from_slice(&values[from..from + len]);
                }
                of.invert(shape, Cow::Owned(there), file)
            }
            Stored::Turned { of, rows } => {
                let mut there = values.into_owned();
                there.rotate_left(rows * row_elements(shape));
                of.invert(shape, Cow::Owned(there), file)
            }
            Stored::Viewed { of, shape: there } => of.invert(there, values, file),
            Stored::Absent => Ok(()),
        }
    }
}

/// For each run of rows of one part and group, in the order by part: where it begins in that order, and its place in the
/// order by group, in elements.
fn by_part(shape: &[usize], groups: usize, parts: &[usize]) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    let row = row_elements(shape);
    let group: usize = parts.iter().sum();
    let mut begin = 0;
    let mut ours = 0;
    parts.iter().copied().flat_map(move |rows| {
        let (first, at) = (begin, ours);
        begin += rows;
        ours += groups * rows * row;
        (0..groups).map(move |g| {
            let there = (g * group + first) * row;
            (at + g * rows * row, there..there + rows * row)
        })
    })
}

/// Part of some values: borrowed where all are.
fn slice<'v, T: Copy>(values: &Cow<'v, [T]>, range: std::ops::Range<usize>) -> Cow<'v, [T]> {
    match values {
        Cow::Borrowed(values) => Cow::Borrowed(&values[range]),
        Cow::Owned(values) => Cow::Owned(values[range].to_vec()),
    }
}

/// The matrices `[.. m n]` as `[.. n m]`.
fn transpose<T: Copy>(values: &[T], shape: &[usize]) -> Vec<T> {
    let &[.., m, n] = shape else { return values.to_vec() };
    let each = |matrix| (0..n).flat_map(move |j| (0..m).map(move |i| (matrix, i, j)));
    let all = (0..values.len() / (m * n).max(1)).flat_map(each);
    all.map(|(matrix, i, j)| values[(matrix * m + i) * n + j]).collect()
}

/// A shape with its last two dimensions exchanged.
fn exchanged(shape: &[usize]) -> Vec<usize> {
    let mut other = shape.to_vec();
    let last = shape.len() - 1;
    other.swap(last - 1, last);
    other
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))
}

/// Elements of one row.
fn row_elements(shape: &[usize]) -> usize {
    shape.iter().skip(1).product()
}

/// The shape with so many rows.
fn with_rows(shape: &[usize], rows: usize) -> Vec<usize> {
    std::iter::once(rows).chain(shape.iter().skip(1).copied()).collect()
}

type Files<'a> = Vec<(&'a str, Vec<usize>)>;

fn collect<'a>(parts: impl Iterator<Item = Result<Files<'a>, StoredError>>) -> Result<Files<'a>, StoredError> {
    let mut all = Vec::new();
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Tensors = BTreeMap<String, (Vec<usize>, Vec<u32>)>;

    fn read(stored: &Stored, shape: &[usize], tensors: &Tensors) -> Result<Vec<u32>, StoredError> {
        stored.read(shape, &mut |name, shape| {
            let (there, values) = &tensors[name];
            assert_eq!(there, shape, "{name}");
            Ok(values.clone())
        })
    }

    fn write(stored: &Stored, shape: &[usize], values: &[u32]) -> Tensors {
        let mut tensors = Tensors::new();
        let mut put = |name: &str, shape: &[usize], values: Cow<'_, [u32]>| {
            let twice = tensors.insert(name.to_owned(), (shape.to_vec(), values.into_owned()));
            assert!(twice.is_none(), "{name}");
            Ok::<_, StoredError>(())
        };
        stored.write(shape, values, &mut put).unwrap();
        tensors
    }

    /// The tensors of a file for an expression, counted through in the order of names.
    fn counted(stored: &Stored, shape: &[usize]) -> Tensors {
        let mut next = 0;
        let count = |(name, shape): (&str, Vec<usize>)| {
            let values = (0..elements(&shape).unwrap()).map(|_| {
                next += 1;
                next
            });
            let values = values.collect();
            (name.to_owned(), (shape, values))
        };
        stored.files(shape).unwrap().into_iter().map(count).collect()
    }

    #[test]
    fn each_kind_by_hand() {
        let of = |names: &[(&str, &[usize], &[u32])]| -> Tensors {
            names.iter().map(|(name, shape, values)| ((*name).into(), (shape.to_vec(), values.to_vec()))).collect()
        };
        let two = of(&[("a", &[1, 2], &[1, 2]), ("b", &[2, 2], &[3, 4, 5, 6])]);
        let rows = Stored::Rows(vec![(2, file("b")), (1, file("a"))]);
        assert_eq!(read(&rows, &[3, 2], &two).unwrap(), [3, 4, 5, 6, 1, 2]);
        let one = of(&[("a", &[2, 3], &[1, 2, 3, 4, 5, 6])]);
        assert_eq!(read(&file("a").transposed(), &[3, 2], &one).unwrap(), [1, 4, 2, 5, 3, 6]);
        assert_eq!(read(&file("a").shaped(&[2, 3]), &[6, 1, 1], &one).unwrap(), [1, 2, 3, 4, 5, 6]);
        let experts = of(&[("0", &[2], &[1, 2]), ("1", &[2], &[3, 4])]);
        assert_eq!(read(&Stored::Stack(vec![file("1"), file("0")]), &[2, 2], &experts).unwrap(), [3, 4, 1, 2]);
        // Two heads of [q q k]: all q, then all k.
        let heads = of(&[("qk", &[6], &[1, 2, 3, 4, 5, 6])]);
        assert_eq!(read(&file("qk").grouped(2, &[2, 1]), &[6], &heads).unwrap(), [1, 2, 4, 5, 3, 6]);
        // Up, then gate: the gate first.
        assert_eq!(read(&file("qk").turned(2), &[6], &heads).unwrap(), [5, 6, 1, 2, 3, 4]);
        // Interleaved x and z.
        assert_eq!(read(&file("qk").grouped(3, &[1, 1]), &[6], &heads).unwrap(), [1, 3, 5, 2, 4, 6]);
    }

    #[test]
    fn shapes_that_cannot_be_are_errors() {
        let rows = Stored::Rows(vec![(2, file("a")), (usize::MAX, file("b"))]);
        for (stored, shape) in [
            (rows, &[1][..]),
            (Stored::Rows(vec![(2, file("a"))]), &[3, 2]),
            (Stored::Rows(vec![]), &[]),
            (Stored::Stack(vec![file("a")]), &[2]),
            (Stored::Stack(vec![file("a")]), &[]),
            (file("a").transposed(), &[4]),
            (file("a").grouped(2, &[1, 1]), &[3]),
            (file("a").grouped(usize::MAX, &[2]), &[3]),
            (file("a").turned(3), &[2]),
            (file("a").turned(1), &[]),
            (file("a").shaped(&[3]), &[2]),
            (file("a").shaped(&[usize::MAX, 2]), &[2]),
        ] {
            stored.files(shape).unwrap_err();
            let never = &mut |_: &str, _: &[usize]| -> Result<Vec<u32>, StoredError> { panic!("nothing is read") };
            stored.read(shape, never).unwrap_err();
        }
    }

    /// An expression for this shape, of any depth, with names of its own.
    fn expressions(shape: Vec<usize>, depth: u32, name: String) -> BoxedStrategy<Stored> {
        let leaf = Just(file(name.clone())).boxed();
        let total = elements(&shape).unwrap();
        let reshaped = Just(file(name.clone()).shaped(&[1, total, 1])).boxed();
        if depth == 0 || shape.is_empty() {
            return prop_oneof![leaf, reshaped].boxed();
        }
        let rows = shape[0];
        let inner = move |shape: Vec<usize>, i: usize| expressions(shape, depth - 1, format!("{name}.{i}"));
        let mut kinds = vec![leaf, reshaped];
        let (of, sizes) = (inner.clone(), shape.clone());
        kinds.push(
            (0..=rows)
                .prop_flat_map(move |first| {
                    let part = |rows: usize, i| of(with_rows(&sizes, rows), i).prop_map(move |part| (rows, part));
                    (part(first, 0), part(rows - first, 1)).prop_map(|(a, b)| Stored::Rows(vec![a, b]))
                })
                .boxed(),
        );
        let stack: Vec<_> = (0..rows).map(|i| inner(shape[1..].to_vec(), i)).collect();
        kinds.push(stack.prop_map(Stored::Stack).boxed());
        if let [m, n] = shape[..] {
            kinds.push(inner(vec![n, m], 0).prop_map(Stored::transposed).boxed());
        }
        kinds.push((inner(shape.clone(), 0), 0..=rows).prop_map(|(of, rows)| of.turned(rows)).boxed());
        let groups: Vec<usize> = (1..=rows).filter(|groups| rows.is_multiple_of(*groups)).collect();
        if !groups.is_empty() {
            let (of, sizes) = (inner, shape.clone());
            let grouped =
                (prop::sample::select(groups), any::<prop::sample::Index>()).prop_flat_map(move |(groups, cut)| {
                    let group = sizes[0] / groups;
                    let first = cut.index(group + 1);
                    of(sizes.clone(), 0).prop_map(move |of| of.grouped(groups, &[first, group - first]))
                });
            kinds.push(grouped.boxed());
        }
        prop::strategy::Union::new(kinds).boxed()
    }

    proptest! {
        #[test]
        fn written_back_bit_for_bit(
            (shape, stored) in prop::collection::vec(1..7_usize, 0..4)
                .prop_flat_map(|shape| (Just(shape.clone()), expressions(shape, 3, "t".into())))
        ) {
            let tensors = counted(&stored, &shape);
            let values = read(&stored, &shape, &tensors).unwrap();
            // Every element of the file is read once.
            let mut sorted = values.clone();
            sorted.sort_unstable();
            prop_assert!(sorted.iter().enumerate().all(|(i, value)| *value == i as u32 + 1));
            prop_assert_eq!(values.len(), elements(&shape).unwrap());
            prop_assert_eq!(write(&stored, &shape, &values), tensors);
        }
    }
}
