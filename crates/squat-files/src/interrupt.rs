//! One flag that every long loop polls.
