//! Random bytes: the kernel's, or in a simulation those of a seed.

/// Where random bytes come from.
#[derive(Debug)]
pub(crate) enum Random {
    /// `getrandom(2)`.
    Kernel,
    /// A seed, counted on.
    #[cfg(feature = "sim")]
    Seed(u64),
}

impl Random {
    /// Fresh random bytes.
    ///
    /// # Panics
    /// When the kernel has none to give (`getrandom(2)` fails only before Linux 3.17, or early in
    /// boot).
    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        match self {
            Self::Kernel => {
                getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
            }
            #[cfg(feature = "sim")]
            Self::Seed(seed) => zproxy_io::sim::random_bytes(seed, &mut bytes),
        }
        bytes
    }
}
