"""QEMU user emulators and their binfmt_misc handlers."""
