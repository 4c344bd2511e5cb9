//! One position of up to 128 rows through a model in few launches a layer: what the steps of families share. Products with the
//! weights, around which norms, the residual stream and the convolution are fused (`product.cuh`, `stream.cu`), and the graph
//! that all launches are captured in.

use std::fmt;
use std::sync::Arc;

use crate::cuda::{Buffer, Define, Gpu, Graph, Held, Kernel, Launch, Mat, Result, Source, Unit};
use crate::resident::int;

static SOURCE: Source =
    Source { name: "batch_step", text: concat!(include_str!("product.cuh"), include_str!("stream.cu")) };

/// The most rows.
pub(crate) const ROWS: usize = 128;
/// Columns of a slice, `COLS` of the source.
const COLS: usize = 64;
/// Threads of a product.
const THREADS: u32 = 256;

/// How a product is split: constants of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    rows: usize,
    tile: usize,
    splits: usize,
    stages: usize,
}

impl Form {
    /// For `b` rows, so that about every multiprocessor reads weights.
    pub(crate) fn new(gpu: &Gpu, b: usize, outputs: usize, k: usize) -> Self {
        let (rows, blocks) = (b.next_power_of_two().clamp(32, ROWS), gpu.multiprocessors());
        let tile = 64;
        let tiles = outputs.div_ceil(tile);
        let most = if gpu.capability() >= (9, 0) { 8 } else { 1 };
        let splits = [8, 4, 2].into_iter().find(|&splits| tiles * splits <= blocks * 5 / 4 && k >= splits * 2 * COLS);
        Self { rows, tile, splits: splits.unwrap_or(1).min(most), stages: STAGES }
    }

    /// Tiles of so many outputs.
    pub(crate) fn tiles(self, outputs: usize) -> usize {
        outputs.div_ceil(self.tile)
    }

    /// Those of [`new`](Self::new).
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let splits = |rows| [1, 2, 4, 8].map(move |splits| Self { rows, tile: 64, splits, stages: STAGES });
        [32, 64, 128].into_iter().flat_map(splits)
    }

    pub(crate) fn defines(self) -> Vec<Define> {
        let Self { rows, tile, splits, stages } = self;
        [("ROWS", rows), ("TILE", tile), ("SPLITS", splits), ("STAGES", stages)]
            .map(|(name, value)| Define::new(name, value))
            .to_vec()
    }

    pub(crate) fn launch(self, outputs: usize) -> Launch {
        let Self { rows, tile, splits, stages } = self;
        let shared = (stages * (rows + tile) * COLS * 2).max(rows * (tile + 4) * 4) + rows * 4;
        let grid = (self.tiles(outputs) as u32, splits as u32, 1);
        Launch { grid, shared: shared as u32, ..Launch::linear(1, THREADS) }.overlapping()
    }
}

/// Slices on the way.
const STAGES: usize = 4;

/// Launches one after another, and the graph of them.
pub(crate) struct Batch {
    gpu: Gpu,
    launches: Vec<Submit>,
    graph: Option<Graph>,
}

type Submit = Box<dyn Fn() -> Result<()> + Send>;

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("launches", &self.launches.len()).finish_non_exhaustive()
    }
}

impl Batch {
    pub(crate) fn new(gpu: Gpu) -> Self {
        Self { gpu, launches: Vec::new(), graph: None }
    }

    /// Adds a launch.
    ///
    /// # Safety
    /// As of [`Kernel::launch`], whenever the batch is launched.
    pub(crate) unsafe fn push<A: Copy + Send + 'static>(&mut self, kernel: Kernel, launch: Launch, args: A) {
        // SAFETY: the caller vouches for it.
        self.launches.push(Box::new(move || unsafe { kernel.launch(launch, &args) }));
    }

    /// Captures what was added; `kept` is what it works on.
    pub(crate) fn capture(&mut self, kept: &[Held]) -> Result<()> {
        let gpu = self.gpu;
        let (graph, ()) = gpu.capture(|| {
            kept.iter().for_each(Held::keep_in_capture);
            self.submit()
        })?;
        self.graph = Some(graph);
        Ok(())
    }

    fn submit(&self) -> Result<()> {
        self.launches.iter().try_for_each(|launch| launch())
    }

    /// Launches all; does not wait.
    pub(crate) fn launch(&self) -> Result<()> {
        match &self.graph {
            Some(graph) if !self.gpu.is_any_capturing() => graph.launch(),
            _ => self.submit(),
        }
    }

    /// Number of launches.
    pub(crate) fn launches(&self) -> u64 {
        self.launches.len() as u64
    }
}

/// `Stream` of the source.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Stream {
    pub(crate) residual: u64,
    pub(crate) x: u64,
    pub(crate) squares: u64,
    pub(crate) norm: u64,
    pub(crate) rows: i32,
    pub(crate) d: i32,
    pub(crate) tiles: i32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Embed {
    to: Stream,
    embedding: u64,
    ids: u64,
    v: i32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Output {
    to: Stream,
    y: u64,
    w: u64,
    squares: u64,
    eps: f32,
    k: i32,
    parts: i32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Head {
    x: u64,
    w: u64,
    squares: u64,
    logits: u64,
    best: u64,
    eps: f32,
    rows: i32,
    d: i32,
    v: i32,
    parts: i32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Choose {
    best: u64,
    ids: u64,
    tiles: i32,
}

/// `Input` of the source.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Input {
    x: u64,
    w: u64,
    squares: u64,
    conv: u64,
    conv_bias: u64,
    conv_state: u64,
    packed: u64,
    eps: f32,
    rows: i32,
    d: i32,
    outputs: i32,
    first: i32,
    channels: i32,
    taps: i32,
    parts: i32,
}

/// The residual stream of a batch with what its products exchange.
#[derive(Debug)]
pub(crate) struct Ends<'a> {
    pub(crate) gpu: Gpu,
    pub(crate) b: usize,
    pub(crate) d: usize,
    /// Channels that the products into the stream sum over.
    pub(crate) ed: usize,
    pub(crate) v: usize,
    pub(crate) eps: f32,
    pub(crate) embedding: Mat<'a>,
    pub(crate) head: Mat<'a>,
    pub(crate) ids: Arc<Buffer>,
}

/// A layer's first product and convolution, as addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct First {
    pub(crate) w: u64,
    pub(crate) outputs: usize,
    /// Outputs before those of the convolution, and its channels and taps.
    pub(crate) conv: (usize, usize, usize),
    pub(crate) taps: u64,
    pub(crate) bias: u64,
    pub(crate) state: u64,
    pub(crate) packed: u64,
}

/// A layer's last product, as addresses; `squares` and their parts, if a norm divides what it multiplies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Last {
    pub(crate) y: u64,
    pub(crate) w: u64,
    pub(crate) squares: u64,
    pub(crate) parts: usize,
    pub(crate) eps: f32,
}

impl Ends<'_> {
    fn form(&self) -> Form {
        Form::new(&self.gpu, self.b, self.d, self.ed)
    }

    /// The stream's memory.
    pub(crate) fn stream(&self, scratch: &mut Vec<Buffer>) -> Result<Stream> {
        let (gpu, tiles) = (self.gpu, self.form().tiles(self.d));
        let bytes = [self.b * self.d * 4, self.b * self.d * 2, tiles * self.b * 4];
        let [residual, x, squares] = bytes.map(|bytes| gpu.alloc(bytes));
        let all = [residual?, x?, squares?];
        let [residual, x, squares] = all.each_ref().map(Buffer::address);
        scratch.extend(all);
        Ok(Stream { residual, x, squares, norm: 0, rows: int(self.b), d: int(self.d), tiles: int(tiles) })
    }

    /// The embedding of the tokens; `stream.norm` is the first norm.
    pub(crate) fn embed(&self, batch: &mut Batch, stream: Stream) -> Result<()> {
        let kernel = self.gpu.kernel(&SOURCE, "embed", &self.form().defines())?;
        let args = Embed { to: stream, embedding: self.embedding.address(), ids: self.ids.address(), v: int(self.v) };
        // SAFETY: laid out as in the source; the caller checked sizes and keeps the memory.
        unsafe { batch.push(kernel, Launch::linear(self.b, THREADS).overlapping(), args) };
        Ok(())
    }

    /// A layer's first product and convolution.
    pub(crate) fn input(&self, batch: &mut Batch, stream: Stream, of: First) -> Result<()> {
        let form = Form::new(&self.gpu, self.b, of.outputs, self.d);
        let (first, channels, taps) = of.conv;
        let args = Input {
            x: stream.x,
            w: of.w,
            squares: stream.squares,
            conv: of.taps,
            conv_bias: of.bias,
            conv_state: of.state,
            packed: of.packed,
            eps: self.eps,
            rows: stream.rows,
            d: stream.d,
            outputs: int(of.outputs),
            first: int(first),
            channels: int(channels),
            taps: int(taps),
            parts: stream.tiles,
        };
        let kernel = self.gpu.kernel(&SOURCE, "input", &form.defines())?;
        // SAFETY: as in `embed`.
        unsafe { batch.push(kernel, form.launch(of.outputs), args) };
        Ok(())
    }

    /// A layer's last product; `stream.norm` is the next norm.
    pub(crate) fn output(&self, batch: &mut Batch, stream: Stream, of: Last) -> Result<()> {
        let form = self.form();
        let Last { y, w, squares, parts, eps } = of;
        let args = Output { to: stream, y, w, squares, eps, k: int(self.ed), parts: int(parts) };
        let kernel = self.gpu.kernel(&SOURCE, "output", &form.defines())?;
        // SAFETY: as in `embed`.
        unsafe { batch.push(kernel, form.launch(self.d), args) };
        Ok(())
    }

    /// Logits, and the most likely tokens.
    pub(crate) fn head(&self, batch: &mut Batch, stream: Stream, logits: u64, scratch: &mut Vec<Buffer>) -> Result<()> {
        let form = Form::new(&self.gpu, self.b, self.v, self.d);
        let tiles = form.tiles(self.v);
        let best = self.gpu.alloc(self.b * tiles * 8)?;
        let args = Head {
            x: stream.x,
            w: self.head.address(),
            squares: stream.squares,
            logits,
            best: best.address(),
            eps: self.eps,
            rows: stream.rows,
            d: stream.d,
            v: int(self.v),
            parts: stream.tiles,
        };
        let choose = Choose { best: best.address(), ids: self.ids.address(), tiles: int(tiles) };
        scratch.push(best);
        let kernels =
            [self.gpu.kernel(&SOURCE, "head", &form.defines())?, self.gpu.kernel(&SOURCE, "choose", &form.defines())?];
        // SAFETY: as in `embed`.
        unsafe {
            batch.push(kernels[0], form.launch(self.v), args);
            batch.push(kernels[1], Launch::linear(self.b, 32).overlapping(), choose);
        }
        Ok(())
    }
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let entries = &["embed", "input", "output", "head", "choose"];
    Form::all().map(|form| Unit { source: &SOURCE, entries, defines: form.defines() }).collect()
}
