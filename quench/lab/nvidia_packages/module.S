/* SIMULATED: what modinfo reads, and no code. */
	.section .modinfo,"a"
	.ascii "version=@VERSION@\0"
	.ascii "license=@LICENSE@\0"
	.ascii "description=SIMULATED by quench lab\0"
	.ascii "name=", NAME, "\0"
	.ascii "vermagic=", KVER, " SMP mod_unload \0"
	.ascii "depends=\0"
	.section .note.GNU-stack,"",@progbits
