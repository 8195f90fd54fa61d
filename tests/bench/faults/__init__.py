"""Random faults on the real parts while corrections stream in, and checks that nothing came of them."""
