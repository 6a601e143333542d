//! The model: the small CNN of "Raft Protocol for Fault Tolerance and Self-Recovery in Federated Learning" (Dautov and
//! Husom 2024), which is that of PyTorch's CIFAR-10 tutorial. Its parameters are one flat string of little-endian `f32`
//! in the order of PyTorch's `state_dict`, so that a checkpoint is those bytes and nothing else.
//!
//! ```text
//! 3x32x32 -conv 5x5-> 6x28x28 -ReLU, max 2x2-> 6x14x14 -conv 5x5-> 16x10x10 -ReLU, max 2x2-> 16x5x5 = 400
//!         -fc-> 120 -ReLU-> -fc-> 84 -ReLU-> -fc-> 10 logits
//! ```
//!
//! This module knows names, shapes and bytes. It does not know how to compute with them: see `train` and the engines.

use std::borrow::Cow;

use bytes::Bytes;
use rand::RngExt;
use replication::work;

use super::seed::generator;

/// Number of classes, and of logits.
pub const CLASSES: usize = 10;

/// Number of parameters of the model.
pub const PARAMETERS: usize = 62_006;

/// Size of the encoded parameters in bytes.
pub const ENCODED_BYTES: usize = PARAMETERS * size_of::<f32>();

/// One tensor of the model and its place in the flat parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in PyTorch's `state_dict`.
    pub name: &'static str,
    /// Row-major shape; a bias has one dimension. Convolution weights are `[out, in, height, width]`, those of a fully
    /// connected layer `[out, in]`.
    pub shape: &'static [usize],
    /// Index of its first parameter.
    pub offset: usize,
    /// Inputs of one output of the layer: the scale of its initial values.
    pub fan_in: usize,
}

impl TensorSpec {
    /// Number of parameters.
    pub const fn len(&self) -> usize {
        let (mut product, mut i) = (1, 0);
        while i < self.shape.len() {
            product *= self.shape[i];
            i += 1;
        }
        product
    }

    /// Whether it has no parameters; no tensor of this model is empty.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its indices in the flat parameters.
    pub const fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// The model's tensors, in the order in which their parameters follow each other.
pub const TENSORS: [TensorSpec; 10] = [
    TensorSpec { name: "conv1.weight", shape: &[6, 3, 5, 5], offset: 0, fan_in: 75 },
    TensorSpec { name: "conv1.bias", shape: &[6], offset: 450, fan_in: 75 },
    TensorSpec { name: "conv2.weight", shape: &[16, 6, 5, 5], offset: 456, fan_in: 150 },
    TensorSpec { name: "conv2.bias", shape: &[16], offset: 2_856, fan_in: 150 },
    TensorSpec { name: "fc1.weight", shape: &[120, 400], offset: 2_872, fan_in: 400 },
    TensorSpec { name: "fc1.bias", shape: &[120], offset: 50_872, fan_in: 400 },
    TensorSpec { name: "fc2.weight", shape: &[84, 120], offset: 50_992, fan_in: 120 },
    TensorSpec { name: "fc2.bias", shape: &[84], offset: 61_072, fan_in: 120 },
    TensorSpec { name: "fc3.weight", shape: &[10, 84], offset: 61_156, fan_in: 84 },
    TensorSpec { name: "fc3.bias", shape: &[10], offset: 61_996, fan_in: 84 },
];

// The table is written by hand; a gap or an overlap in it does not compile.
const _: () = {
    let (mut end, mut i) = (0, 0);
    while i < TENSORS.len() {
        assert!(TENSORS[i].offset == end, "the tensors must follow each other");
        end += TENSORS[i].len();
        i += 1;
    }
    assert!(end == PARAMETERS, "the tensors must hold all parameters");
};

/// Why bytes or numbers are no parameters of this model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The bytes have the wrong length.
    #[error("{actual} bytes are not the model's parameters, which take {expected} bytes of f32")]
    EncodedLength {
        /// Bytes given.
        actual: usize,
        /// Bytes of the model.
        expected: usize,
    },
    /// There are too few or too many numbers.
    #[error("{actual} parameters given, the model has {expected}")]
    Length {
        /// Parameters given.
        actual: usize,
        /// Parameters of the model.
        expected: usize,
    },
    /// A parameter is infinite or not a number.
    #[error("parameter {index} ({tensor}) is {value}: training diverged, or the bytes are not parameters")]
    NotFinite {
        /// Index in the flat parameters.
        index: usize,
        /// Name of the tensor it belongs to.
        tensor: &'static str,
        /// Its value.
        value: f32,
    },
}

/// PyTorch's default initial parameters: uniform in +-1/sqrt(fan_in), biases too (`nn.Conv2d`, `nn.Linear`:
/// `kaiming_uniform_(a=sqrt(5))`). [`PARAMETERS`] values, a function of `seed` alone.
pub fn initial(seed: u64) -> Vec<f32> {
    let mut rng = generator(seed, "initial parameters", &[]);
    let mut parameters = Vec::with_capacity(PARAMETERS);
    for tensor in &TENSORS {
        let bound = 1.0 / (tensor.fan_in as f32).sqrt();
        parameters.extend((0..tensor.len()).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound));
    }
    parameters
}

/// Accepts parameters of the right number that are all finite.
///
/// # Errors
/// [`ModelError::Length`], or [`ModelError::NotFinite`] for the first offender.
pub fn check(parameters: &[f32]) -> Result<(), ModelError> {
    check_sized(parameters, PARAMETERS)
}

/// As [`check`], for a model of `expected` parameters.
///
/// # Errors
/// As [`check`].
pub(super) fn check_sized(parameters: &[f32], expected: usize) -> Result<(), ModelError> {
    if parameters.len() != expected {
        return Err(ModelError::Length { actual: parameters.len(), expected });
    }
    check_finite(parameters)
}

fn check_finite(parameters: &[f32]) -> Result<(), ModelError> {
    // The exponent of every finite number is below this one: a test on whole chunks, which the compiler vectorises.
    const INFINITE: u32 = 0x7f80_0000;
    let finite = |chunk: &[f32]| chunk.iter().map(|x| x.to_bits() & INFINITE).max() < Some(INFINITE);
    if parameters.chunks(256).all(finite) {
        return Ok(());
    }
    match parameters.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(index) => {
            let tensor = TENSORS.iter().find(|t| t.range().contains(&index)).map_or("none", |t| t.name);
            Err(ModelError::NotFinite { index, tensor, value: parameters[index] })
        }
    }
}

/// Encodes parameters as little-endian `f32`. On little-endian machines the vector's own memory becomes the bytes.
///
/// # Errors
/// As [`check`].
pub fn encode(parameters: Vec<f32>) -> Result<Bytes, ModelError> {
    encode_sized(parameters, PARAMETERS)
}

/// As [`encode`], for a model of `expected` parameters.
///
/// # Errors
/// As [`check`].
pub(super) fn encode_sized(parameters: Vec<f32>, expected: usize) -> Result<Bytes, ModelError> {
    work::timed(work::Kind::Encode, || to_bytes(parameters, expected))
}

fn to_bytes(parameters: Vec<f32>, expected: usize) -> Result<Bytes, ModelError> {
    check_sized(&parameters, expected)?;
    #[cfg(target_endian = "little")]
    return Ok(Bytes::from_owner(Words(parameters)));
    #[cfg(target_endian = "big")]
    return Ok(parameters.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into());
}

/// Owner of encoded bytes that were numbers.
#[cfg(target_endian = "little")]
struct Words(Vec<f32>);

#[cfg(target_endian = "little")]
impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Decodes parameters; borrows the bytes where their alignment and the machine's byte order allow it, copies otherwise.
/// Bytes from [`encode`] are always aligned, bytes cut out of a received frame may not be.
///
/// # Errors
/// [`ModelError::EncodedLength`], or [`ModelError::NotFinite`] for the first offender.
pub fn decode(bytes: &[u8]) -> Result<Cow<'_, [f32]>, ModelError> {
    decode_sized(bytes, PARAMETERS)
}

/// As [`decode`], for a model of `expected` parameters.
///
/// # Errors
/// As [`decode`].
pub(super) fn decode_sized(bytes: &[u8], expected: usize) -> Result<Cow<'_, [f32]>, ModelError> {
    work::timed(work::Kind::Decode, || to_parameters(bytes, expected))
}

fn to_parameters(bytes: &[u8], expected: usize) -> Result<Cow<'_, [f32]>, ModelError> {
    let expected = expected * size_of::<f32>();
    if bytes.len() != expected {
        return Err(ModelError::EncodedLength { actual: bytes.len(), expected });
    }
    let parameters = match bytemuck::try_cast_slice::<u8, f32>(bytes) {
        Ok(words) if cfg!(target_endian = "little") => Cow::Borrowed(words),
        _ => Cow::Owned(bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect()),
    };
    check_finite(&parameters)?;
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_values_have_pytorchs_scale() {
        let parameters = initial(7);
        assert_eq!(parameters.len(), PARAMETERS);
        assert_eq!(parameters, initial(7));
        assert_ne!(parameters, initial(8));
        for tensor in &TENSORS {
            let bound = 1.0 / (tensor.fan_in as f32).sqrt();
            let values = &parameters[tensor.range()];
            assert!(values.iter().all(|x| x.abs() <= bound), "{}", tensor.name);
            let largest = values.iter().fold(0f32, |m, x| m.max(x.abs()));
            assert!(largest > bound * 0.5, "{}: {largest} of {bound}", tensor.name);
        }
    }

    #[test]
    fn encoding_is_little_endian_and_reversible() {
        let parameters = initial(1);
        let bytes = encode(parameters.clone()).unwrap();
        assert_eq!(bytes.len(), 248_024);
        assert_eq!(bytes[..4], parameters[0].to_le_bytes());
        let decoded = decode(&bytes).unwrap();
        assert!(matches!(decoded, Cow::Borrowed(_)));
        assert_eq!(*decoded, *parameters);
    }

    #[test]
    fn unaligned_bytes_are_copied() {
        let parameters = initial(1);
        let mut shifted = vec![0u8];
        shifted.extend_from_slice(&encode(parameters.clone()).unwrap());
        // One of the two is misaligned, whatever the allocation's address.
        assert_eq!(*decode(&shifted[1..]).unwrap(), *parameters);
        shifted.insert(0, 0);
        assert_eq!(*decode(&shifted[2..]).unwrap(), *parameters);
    }

    #[test]
    fn wrong_lengths_and_numbers_are_refused() {
        assert_eq!(decode(&[0; 7]), Err(ModelError::EncodedLength { actual: 7, expected: ENCODED_BYTES }));
        assert_eq!(encode(vec![0.0; 3]), Err(ModelError::Length { actual: 3, expected: PARAMETERS }));
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut parameters = initial(1);
            parameters[61_996] = value;
            let error = encode(parameters).unwrap_err();
            assert!(
                matches!(error, ModelError::NotFinite { index: 61_996, tensor: "fc3.bias", .. }),
                "{error}"
            );
        }
    }
}
