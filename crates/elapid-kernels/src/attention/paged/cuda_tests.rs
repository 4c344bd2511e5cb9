//! Pages and steps on a GPU, against the f64 oracle.

use std::sync::Arc;

use super::super::args::{Args, Attention, Mask, Stretch};
use super::super::naive;
use super::*;
use crate::cuda::Gpu;
use crate::testing::{OnDevice, Random, argument_of, err_ratio, gpu, median, rounded, wide};
use crate::{DType, Rows, RowsMut};

struct Case {
    attention: Attention,
    hk: usize,
    hv: usize,
    dtype: DType,
    columns: Columns,
    /// Positions that each row has read; none: a row that nobody uses.
    read: Vec<Option<usize>>,
}

/// The pages of a row as [`Run`]s take them.
fn borrowed(pages: &[Arc<Page>]) -> Vec<&Page> {
    pages.iter().map(|page| &**page).collect()
}

/// A cache of a row: values `[len groups·dim]` in pages, of which the table keeps what it has columns for.
fn pages(gpu: Gpu, shape: Shape, values: &[f32], len: usize) -> Vec<Arc<Page>> {
    let cols = shape.groups * shape.dim;
    let pages: Vec<_> = (0..=len / PAGE).map(|_| Arc::new(Page::new(gpu, shape).unwrap())).collect();
    let x = OnDevice::of(gpu, &values[..len * cols], cols, 8, shape.dtype);
    let run = Run { slot: 0, at: 0, count: len, pages: borrowed(&pages) };
    store(x.mat(), len, &[run]).unwrap();
    pages
}

/// Two steps of every row against the equation over all that it has read.
// Long: pages, two steps, and the oracle of each row.
fn check(gpu: Gpu, case: &Case, random: &mut Random) {
    let Case { attention, hk, hv, dtype, columns, read } = case;
    let (hk, hv, dtype, rows) = (*hk, *hv, *dtype, read.len());
    let &Attention { heads, kv_heads, .. } = attention;
    let shapes = [hk, hv].map(|dim| Shape { groups: kv_heads, dim, dtype });
    let mut tables = Tables::new(gpu, rows, &shapes.map(|shape| (shape, *columns))).unwrap();
    let positions: Vec<u64> = read.iter().map(|read| read.unwrap_or(77) as u64).collect();
    let positions = gpu.upload(&positions).unwrap();
    let logits = random.normal(heads);
    let sinks = OnDevice::of(gpu, &logits, heads, 0, DType::F32);
    let mut values = |rows: usize, cols: usize| rounded(&random.normal(rows * cols), dtype);
    let (k_cols, v_cols) = (kv_heads * hk, kv_heads * hv);
    let past: Vec<[Vec<f32>; 2]> =
        read.iter().map(|read| [k_cols, v_cols].map(|cols| values(read.unwrap_or(0) + 2, cols))).collect();
    for (row, read) in read.iter().enumerate().filter_map(|(row, read)| Some((row, (*read)?))) {
        for (cache, &shape) in shapes.iter().enumerate() {
            // A window's first page that is not a sink may have been dropped long ago.
            let pages = pages(gpu, shape, &past[row][cache], read);
            for (k, page) in pages.iter().enumerate() {
                assert!(tables.set(cache, row, k, page));
            }
        }
    }
    tables.flush().unwrap();
    for now in 0..2 {
        let q = values(rows, heads * hk);
        let [k, v] = [(0, k_cols), (1, v_cols)].map(|(cache, cols)| {
            let at = |row: usize| (read[row].unwrap_or(0) + now) * cols;
            (0..rows).flat_map(|row| past[row][cache][at(row)..][..cols].to_vec()).collect::<Vec<f32>>()
        });
        for (row, read) in read.iter().enumerate().filter_map(|(row, read)| Some((row, (*read)?))) {
            if (read + now) % PAGE == 0 {
                for (cache, &shape) in shapes.iter().enumerate() {
                    let page = Arc::new(Page::new(gpu, shape).unwrap());
                    assert!(tables.set(cache, row, (read + now) / PAGE, &page));
                }
            }
        }
        tables.flush().unwrap();
        let on = |x: &[f32], cols: usize| OnDevice::of(gpu, x, cols, 8, dtype);
        let (q_on, k_on, v_on) = (on(&q, heads * hk), on(&k, k_cols), on(&v, v_cols));
        let y = OnDevice::poisoned(gpu, rows, heads * hv, 8, dtype);
        let seen = Past { tables: &tables, caches: [0, 1], positions: &positions };
        // One step with learned logits, one without.
        let (on_gpu, logits) = if now == 0 { (None, None) } else { (Some(sinks.mat()), Some(wide(&logits))) };
        step(attention, [q_on.mat(), k_on.mat(), v_on.mat()], on_gpu, seen, y.mat_mut()).unwrap();
        crate::positions::advance(&positions, rows, u64::MAX).unwrap();
        let got = y.values();
        for row in 0..rows {
            let got = &got[row * heads * hv..][..heads * hv];
            let Some(read) = read[row] else {
                assert!(got.iter().all(|&y| y == 0.0), "a row without pages");
                continue;
            };
            let end = read + now + 1;
            let (q, k, v) = (wide(&q), wide(&past[row][0][..end * k_cols]), wide(&past[row][1][..end * v_cols]));
            let stretches = [Stretch::whole(0..1, 0..end, end - 1)];
            let args = Args {
                q: Rows::new(&q[row * heads * hk..][..heads * hk], heads * hk),
                k: Rows::new(&k, k_cols),
                v: Rows::new(&v, v_cols),
                pages: &[],
                sink_logits: logits.as_deref(),
                stretches: &stretches[..],
            };
            let mut want = vec![0.0; heads * hv];
            naive::forward(attention, &args, RowsMut::new(&mut want, heads * hv));
            let error = err_ratio(&want, got);
            let bound = if dtype == DType::F32 { 1e-5 } else { 6e-3 };
            let sizes = format!("{heads} / {kv_heads} of {hk}, {hv} {dtype}, {:?}", attention.mask);
            assert!(error < bound, "after {read} + {now}, {sizes}: {error:e}");
        }
    }
}

#[test]
fn steps_are_naive() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(3);
    let window = Mask { window: 100, sinks: 5, ..Mask::default() };
    let sparse = Mask { window: 30, dilation: 3, sinks: 2, ..Mask::default() };
    let global = Mask { window: 40, strided: true, globals: vec![7, 130].into(), ..Mask::default() };
    let read = vec![Some(0), Some(1), Some(62), Some(63), None, Some(64), Some(200), Some(1000), Some(4095)];
    let all = Columns::growing(70);
    for (mask, columns) in [
        (Mask::default(), all),
        (window.clone(), Columns::window(100, 5)),
        (window, all),
        (sparse.clone(), Columns::window(sparse.reach().unwrap(), 2)),
        (global, all),
    ] {
        for (dtype, heads, kv_heads, hk, hv) in [
            (DType::Bf16, 4, 4, 64, 64),
            (DType::Bf16, 32, 4, 64, 64),
            (DType::Bf16, 16, 1, 128, 128),
            (DType::Bf16, 20, 2, 72, 40),
            (DType::Bf16, 9, 1, 256, 256),
            (DType::Bf16, 3, 1, 7, 5),
            (DType::F32, 8, 2, 64, 64),
            (DType::F32, 20, 1, 33, 256),
        ] {
            for (softcap, alibi) in [(0.0, false), (3.0, true)] {
                let attention = Attention { heads, kv_heads, scale: 0.2, mask: mask.clone(), softcap, alibi };
                check(gpu, &Case { attention, hk, hv, dtype, columns, read: read.clone() }, &mut random);
            }
        }
    }
}

#[test]
fn many_rows_take_few_parts() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(4);
    let read = (0..200).map(|row| (row % 7 != 3).then_some(row * 5)).collect();
    let attention = Attention { heads: 8, kv_heads: 4, scale: 0.2, mask: Mask::default(), softcap: 0.0, alibi: false };
    let case = Case { attention, hk: 64, hv: 64, dtype: DType::Bf16, columns: Columns::growing(16), read };
    check(gpu, &case, &mut random);
}

#[test]
fn what_is_stored_is_gathered() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random::new(5);
    for dtype in [DType::F32, DType::Bf16] {
        let shape = Shape { groups: 3, dim: 10, dtype };
        let (l, cols) = (150, 30);
        let values = rounded(&random.normal(2 * l * cols), dtype);
        let x = OnDevice::of(gpu, &values, cols, 8, dtype);
        let all: Vec<Vec<Arc<Page>>> =
            (0..2).map(|_| (0..4).map(|_| Arc::new(Page::new(gpu, shape).unwrap())).collect()).collect();
        let run = |row: usize| Run { slot: 60, at: 10 * row, count: 140, pages: borrowed(&all[row]) };
        store(x.mat(), l, &[run(0), run(1)]).unwrap();
        let y = OnDevice::poisoned(gpu, 2 * l, cols, 4, dtype);
        gather(y.mat_mut(), l, &[run(0), run(1)]).unwrap();
        let got = y.values();
        for row in 0..2 {
            let inside = (row * l + 10 * row) * cols..(row * l + 10 * row + 140) * cols;
            assert_eq!(got[inside.clone()], values[inside]);
        }
        // Position 4 of the run is slot 0 of the second page.
        let page = all[0][1].to_vec().unwrap();
        assert_eq!(page[PAGE * 10..][..10], values[4 * cols + 10..][..10], "group 1");
        let other = all[0][1].converted(DType::F32).unwrap();
        assert_eq!(other.to_vec().unwrap()[..10], page[..10]);
    }
}

#[test]
fn arguments_are_checked() {
    let Some(gpu) = gpu() else { return };
    let shape = Shape { groups: 2, dim: 8, dtype: DType::F32 };
    let page = Page::new(gpu, shape).unwrap();
    let x = OnDevice::poisoned(gpu, 70, 16, 0, DType::F32);
    let run = |count, slot| [Run { slot, at: 0, count, pages: vec![&page] }];
    assert_eq!(argument_of(store(x.mat(), 70, &run(65, 0))), Some("runs"));
    assert_eq!(argument_of(store(x.mat(), 70, &run(1, 64))), Some("runs"));
    assert_eq!(argument_of(store(x.mat(), 71, &run(1, 0))), Some("x"));
    let columns = Columns::window(100, 0);
    let tables = Tables::new(gpu, 1, &[(shape, columns), (shape, columns)]).unwrap();
    let positions = gpu.upload(&[0u64]).unwrap();
    let past = Past { tables: &tables, caches: [0, 1], positions: &positions };
    let m = OnDevice::poisoned(gpu, 1, 16, 0, DType::F32);
    let of = |mask: Mask, caches: [usize; 2]| {
        let attention = Attention { heads: 2, kv_heads: 2, scale: 1.0, mask, softcap: 0.0, alibi: false };
        argument_of(step(&attention, [m.mat(), m.mat(), m.mat()], None, Past { caches, ..past }, m.mat_mut()))
    };
    assert_eq!(of(Mask::default(), [0, 1]), Some("mask"), "more than what the table keeps");
    assert_eq!(of(Mask { window: 200, ..Mask::default() }, [0, 1]), Some("mask"));
    assert_eq!(of(Mask { window: 90, ..Mask::default() }, [0, 2]), Some("caches"));
    assert_eq!(of(Mask { causal: false, ..Mask::default() }, [0, 1]), Some("mask"));
    assert_eq!(of(Mask { window: 90, ..Mask::default() }, [0, 1]), None);
}

/// The steps of a Llama of 1.1 billion parameters over 4,096 positions, each of pages of its own.
#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    let (heads, kv_heads, width, layers, read) = (32, 4, 64, 22, 4096);
    let shape = Shape { groups: kv_heads, dim: width, dtype: DType::Bf16 };
    let columns = Columns::growing(128);
    let attention = Attention { heads, kv_heads, scale: 0.125, mask: Mask::default(), softcap: 0.0, alibi: false };
    for rows in [1, 8, 64] {
        let mut tables = Tables::new(gpu, rows, &vec![(shape, columns); 2 * layers]).unwrap();
        for cache in 0..2 * layers {
            for row in 0..rows {
                for k in 0..=read / PAGE {
                    tables.set(cache, row, k, &Arc::new(Page::new(gpu, shape).unwrap()));
                }
            }
        }
        tables.flush().unwrap();
        let positions = gpu.upload(&vec![read as u64; rows]).unwrap();
        let qkv = OnDevice::of(gpu, &Random::new(1).normal(rows * 2560), 2560, 0, DType::Bf16);
        let y = OnDevice::poisoned(gpu, rows, heads * width, 0, DType::Bf16);
        let all = || {
            for layer in 0..layers {
                let m = qkv.mat();
                let qkv = [m.columns(0, 2048), m.columns(2048, 256), m.columns(2304, 256)];
                let past = Past { tables: &tables, caches: [2 * layer, 2 * layer + 1], positions: &positions };
                step(&attention, qkv, None, past, y.mat_mut())?;
            }
            Ok(())
        };
        all().unwrap();
        let (graph, ()) = gpu.capture::<_, crate::cuda::Error>(all).unwrap();
        let ms = median(gpu.time(20, || graph.launch()).unwrap());
        let bytes = 2 * layers * rows * read * kv_heads * width * 2;
        println!("{rows} rows: {ms:.4} ms, {:.0} GB/s", bytes as f32 / ms / 1e6);
    }
}
