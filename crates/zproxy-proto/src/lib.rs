//! What ZProxy says on the wire.
#![forbid(unsafe_code)]
