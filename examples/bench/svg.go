package main

func draw(on setup, results []result) string { return "" }
