//! Random bytes from the kernel.

/// Fresh random bytes.
///
/// # Panics
/// When the kernel has none to give (`getrandom(2)` fails only before Linux 3.17, or early in boot).
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

/// A random number.
pub(crate) fn number() -> u64 {
    u64::from_ne_bytes(bytes())
}
