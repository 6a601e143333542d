//! The model's layers for candle, each with its own derivative.
//!
//! Why not candle's own (0.11): the derivative of its `conv2d` is several times slower than all the rest of a step, that
//! of its `max_pool2d` is a quarter of the true one wherever a window has a single largest value, and its `matmul` asks
//! for a thread pool. Convolution here is im2col and matrix product, one image at a time, so that the unfolded image
//! stays in the cache. Every kernel runs on the calling thread.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

/// Side of a convolution kernel, in pixels.
const KERNEL: usize = 5;

/// A row-major matrix, or the transpose of one.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "a matrix has rows x columns elements");
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// `out = a b`, or `out += a b` if `accumulate`; `out` is row-major. On the calling thread.
fn multiply(out: &mut [f32], a: Matrix<'_>, b: Matrix<'_>, accumulate: bool) {
    assert_eq!(a.columns, b.rows, "inner dimensions agree");
    assert_eq!(out.len(), a.rows * b.columns, "the product has its place");
    // SAFETY: the strides address rows x columns elements of each slice, whose lengths are checked above and in
    // `Matrix::new`; `out` is borrowed mutably, so it overlaps neither factor, and it is initialised.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            b.columns as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// The elements of a contiguous `f32` tensor in main memory.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("the tensor is not contiguous"),
    }
}

/// Calls `compute` with the elements of some tensors.
fn with_slices<const N: usize, T>(
    tensors: [&Tensor; N],
    compute: impl FnOnce([&[f32]; N]) -> Result<T>,
) -> Result<T> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&held) {
        match &**storage {
            Storage::Cpu(storage) => *slice = contiguous(storage, layout)?,
            _ => bail!("the tensor is not in main memory"),
        }
    }
    compute(slices)
}

/// Convolution 5x5 (stride 1, no padding), then max-pooling 2x2, then ReLU, of square images: `x [n, in, s, s]`,
/// `weight [out, in, 5, 5]`, `bias [out]` to `[n, out, (s-4)/2, (s-4)/2]`, `s` even.
///
/// One kernel for the three, because what lies between them is large and can be computed again image by image. Of equal
/// values in a window the first one gets the gradient, as in PyTorch; none gets any where the result is 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConvPoolRelu {
    /// Channels of `x`.
    pub(super) in_channels: usize,
    /// Side of `x`, in pixels.
    pub(super) in_side: usize,
    /// Channels of the result.
    pub(super) out_channels: usize,
    /// Whether the gradient of `x` is wanted; the first layer saves it.
    pub(super) input_gradient: bool,
}

/// Room for one image between the steps of [`ConvPoolRelu`].
struct Scratch {
    /// The unfolded image, `[taps, conv_pixels]`.
    unfolded: Vec<f32>,
    /// Result of the convolution, or its gradient, `[out, conv_pixels]`.
    conv: Vec<f32>,
}

impl ConvPoolRelu {
    /// Side of the convolution's result, before pooling.
    fn conv_side(&self) -> usize {
        self.in_side + 1 - KERNEL
    }

    fn conv_pixels(&self) -> usize {
        self.conv_side() * self.conv_side()
    }

    /// Elements of one image.
    fn image(&self) -> usize {
        self.in_channels * self.in_side * self.in_side
    }

    /// Elements of one image's result.
    fn result(&self) -> usize {
        self.out_channels * self.conv_pixels() / 4
    }

    fn taps(&self) -> usize {
        self.in_channels * KERNEL * KERNEL
    }

    fn scratch(&self) -> Scratch {
        Scratch {
            unfolded: vec![0.0; self.taps() * self.conv_pixels()],
            conv: vec![0.0; self.out_channels * self.conv_pixels()],
        }
    }

    /// Calls `each(index into the unfolded image, index into the image)` for the first pixel of every run of
    /// `conv_side` pixels: channel by channel, tap by tap, line by line.
    fn runs(&self, mut each: impl FnMut(usize, usize)) {
        let (side, run) = (self.in_side, self.conv_side());
        let mut unfolded = 0;
        for channel in 0..self.in_channels {
            for tap in 0..KERNEL * KERNEL {
                let first = channel * side * side + (tap / KERNEL) * side + tap % KERNEL;
                for line in 0..run {
                    each(unfolded, first + line * side);
                    unfolded += run;
                }
            }
        }
    }

    /// im2col: `image [in, s, s]` to `unfolded [taps, conv_pixels]`.
    fn unfold(&self, image: &[f32], unfolded: &mut [f32]) {
        let run = self.conv_side();
        self.runs(|to, from| unfolded[to..to + run].copy_from_slice(&image[from..from + run]));
    }

    /// The adjoint of [`Self::unfold`]: adds `unfolded` to `image`.
    fn fold(&self, unfolded: &[f32], image: &mut [f32]) {
        let run = self.conv_side();
        self.runs(|from, to| {
            for (sum, value) in image[to..to + run].iter_mut().zip(&unfolded[from..from + run]) {
                *sum += value;
            }
        });
    }

    /// Unfolds an image and convolves it, into `scratch`.
    fn convolve(&self, image: &[f32], weight: Matrix<'_>, bias: &[f32], scratch: &mut Scratch) {
        for (plane, bias) in scratch.conv.chunks_exact_mut(self.conv_pixels()).zip(bias) {
            plane.fill(*bias);
        }
        self.unfold(image, &mut scratch.unfolded);
        let unfolded = Matrix::new(&scratch.unfolded, self.taps(), self.conv_pixels());
        multiply(&mut scratch.conv, weight, unfolded, true);
    }

    /// The windows of pooling: for every index of an image's result the four indices into its convolution.
    fn windows(&self) -> impl Iterator<Item = [usize; 4]> + use<> {
        let side = self.conv_side();
        (0..self.out_channels * side / 2).flat_map(move |line| {
            let first = 2 * line * side;
            (first..first + side).step_by(2).map(move |at| [at, at + 1, at + side, at + side + 1])
        })
    }

    fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let weight = Matrix::new(weight, self.out_channels, self.taps());
        let mut scratch = self.scratch();
        let mut y = vec![0.0; x.len() / self.image() * self.result()];
        for (image, result) in x.chunks_exact(self.image()).zip(y.chunks_exact_mut(self.result())) {
            self.convolve(image, weight, bias, &mut scratch);
            for (result, window) in result.iter_mut().zip(self.windows()) {
                *result = window.into_iter().fold(0.0, |largest: f32, i| largest.max(scratch.conv[i]));
            }
        }
        y
    }

    /// Gradients of `x` (empty unless wanted), weight and bias, given the result and its gradient.
    fn backward(&self, x: &[f32], weight: &[f32], bias: &[f32], y: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
        let (taps, pixels, channels) = (self.taps(), self.conv_pixels(), self.out_channels);
        let weight = Matrix::new(weight, channels, taps);
        let mut dx = vec![0.0; if self.input_gradient { x.len() } else { 0 }];
        // Transposed, [taps, out]: the other way round the product would reorder the unfolded image every time.
        let mut dweight = vec![0.0; taps * channels];
        let mut dbias = vec![0.0; channels];
        let mut scratch = self.scratch();
        let results = y.chunks_exact(self.result()).zip(dy.chunks_exact(self.result()));
        for (i, (image, (y, dy))) in x.chunks_exact(self.image()).zip(results).enumerate() {
            self.convolve(image, weight, bias, &mut scratch);
            self.unpool(y, dy, &mut scratch.conv);
            for (sum, plane) in dbias.iter_mut().zip(dy_by_channel(y, dy, channels)) {
                *sum += plane;
            }
            let dconv = Matrix::new(&scratch.conv, channels, pixels);
            multiply(&mut dweight, Matrix::new(&scratch.unfolded, taps, pixels), dconv.transposed(), true);
            if self.input_gradient {
                multiply(&mut scratch.unfolded, weight.transposed(), dconv, false);
                self.fold(&scratch.unfolded, &mut dx[i * self.image()..][..self.image()]);
            }
        }
        let by_channel = (0..channels).flat_map(|channel| dweight[channel..].iter().step_by(channels));
        [dx, by_channel.copied().collect(), dbias]
    }

    /// Replaces the result of the convolution by its gradient.
    fn unpool(&self, y: &[f32], dy: &[f32], conv: &mut [f32]) {
        for ((y, dy), window) in y.iter().zip(dy).zip(self.windows()) {
            let mut gradient = if *y > 0.0 { *dy } else { 0.0 };
            for i in window {
                let chosen = conv[i] == *y;
                conv[i] = if chosen { gradient } else { 0.0 };
                gradient = if chosen { 0.0 } else { gradient };
            }
        }
    }
}

/// Sum of an image's gradient per channel, where ReLU lets it pass.
fn dy_by_channel<'a>(y: &'a [f32], dy: &'a [f32], channels: usize) -> impl Iterator<Item = f32> + 'a {
    let plane = y.len() / channels;
    let planes = y.chunks_exact(plane).zip(dy.chunks_exact(plane));
    planes.map(|(y, dy)| y.iter().zip(dy).map(|(y, dy)| if *y > 0.0 { *dy } else { 0.0 }).sum())
}

impl CustomOp3 for ConvPoolRelu {
    fn name(&self) -> &'static str {
        "conv-pool-relu"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, channels, height, width) = x_layout.shape().dims4()?;
        if [channels, height, width] != [self.in_channels, self.in_side, self.in_side] {
            bail!("{self:?} cannot take {:?}", x_layout.shape());
        }
        let x = contiguous(x, x_layout)?;
        let y = self.forward(x, contiguous(weight, weight_layout)?, contiguous(bias, bias_layout)?);
        let side = self.conv_side() / 2;
        Ok((CpuStorage::F32(y), (n, self.out_channels, side, side).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let compute = |[x, weight, bias, y, dy]: [&[f32]; 5]| Ok(self.backward(x, weight, bias, y, dy));
        let [dx, dweight, dbias] = with_slices([x, weight, bias, y, &dy], compute)?;
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device()).map(Some);
        let dx = if self.input_gradient { tensor(dx, x)? } else { None };
        Ok((dx, tensor(dweight, weight)?, tensor(dbias, bias)?))
    }
}

/// Fully connected layer: `x [n, in]`, `weight [out, in]`, `bias [out]` to `[n, out]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, inputs) = x_layout.shape().dims2()?;
        let outputs = bias_layout.shape().dims1()?;
        if weight_layout.shape().dims2()? != (outputs, inputs) {
            bail!("a layer of {:?} cannot take {:?}", weight_layout.shape(), x_layout.shape());
        }
        let x = Matrix::new(contiguous(x, x_layout)?, n, inputs);
        let weight = Matrix::new(contiguous(weight, weight_layout)?, outputs, inputs);
        let mut y = contiguous(bias, bias_layout)?.repeat(n);
        multiply(&mut y, x, weight.transposed(), true);
        Ok((CpuStorage::F32(y), (n, outputs).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (n, inputs) = x.dims2()?;
        let outputs = weight.dim(0)?;
        let dy = dy.contiguous()?;
        let (dx, dweight, dbias) = with_slices([x, weight, &dy], |[x, weight, dy]| {
            let (mut dx, mut dweight, mut dbias) =
                (vec![0.0; x.len()], vec![0.0; weight.len()], vec![0.0; outputs]);
            for row in dy.chunks_exact(outputs) {
                dbias.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            let dy = Matrix::new(dy, n, outputs);
            multiply(&mut dx, dy, Matrix::new(weight, outputs, inputs), false);
            multiply(&mut dweight, dy.transposed(), Matrix::new(x, n, inputs), false);
            Ok((dx, dweight, dbias))
        })?;
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device()).map(Some);
        Ok((tensor(dx, x)?, tensor(dweight, weight)?, Some(Tensor::from_vec(dbias, outputs, x.device())?)))
    }
}
