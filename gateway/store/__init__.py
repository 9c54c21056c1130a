"""What outlives the process (the journal), and what crosses processes (the bus): two protocols and their makers."""
