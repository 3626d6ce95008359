from mrgen.cli import main

main()
