//! What this kernel offers (filled in by the probe).
