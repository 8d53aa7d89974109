#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| zproxy_fuzz::lane::lane(bytes));
