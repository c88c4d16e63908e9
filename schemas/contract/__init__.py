"""The typed model of a contract, and everything that reads, checks and names what contracts say."""
